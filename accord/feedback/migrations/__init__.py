"""The layouts the database of judgements has had, one file each, oldest first; Alembic goes from any to the newest.

A layout that was released is never edited: what changes is a new file.
"""

"""Whole recipes run on the text world in CPU minutes: `python -m accord.lab.journeys NAME --out DIR --seed S`."""

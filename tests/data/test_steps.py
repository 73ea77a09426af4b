"""Steps of a response in tokens: every step tokenised by itself, its end known by construction."""

from dataclasses import replace

import pytest
from tiny_tokenizers import chatml_tokenizer, word_tokenizer

from accord.data import convert_rows, encode_group
from accord.data.readers.files import Rows
from accord.errors import DataError
from accord.records import Group, Label, Message, Response

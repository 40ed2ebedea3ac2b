"""Texts are checked by a regular expression that tries every way to cut them into words before it gives
up; the twin's can be read in one way only."""

import re
import sys

import shift

SICK = re.compile(r"^(\w+\s?)+$")
HEALTHY = re.compile(r"^\w+(\s\w+)*\s?$")
TEXT = "abcdefghijklmn!"


def check_texts(pattern):
    for _ in range(10):
        pattern.match(TEXT)


pattern = SICK if sys.argv[1] == "sick" else HEALTHY
shift.work(1, 0.01, lambda: lambda: check_texts(pattern))

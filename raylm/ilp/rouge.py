"""ROUGE-L: how much of two texts is the same, in order."""

from __future__ import annotations

import re


def rouge_l(response: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, case aside; 0 where a text has no word.

    source: Lin, "ROUGE: a package for automatic evaluation of summaries" (2004), section 3, with beta = 1.
    """
    left, right = (re.findall(r"\w+", text.casefold()) for text in (response, reference))
    if not left or not right:
        return 0.0
    before = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if word == other else max(row[-1], before[place + 1]))
        before = row
    return 2 * before[-1] / (len(left) + len(right))

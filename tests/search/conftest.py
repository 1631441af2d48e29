"""What the tests of the search share."""

import pytest

from raylm.llm import models


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer(models.resolve("micro").path)

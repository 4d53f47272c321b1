"""Mistral Small 3.1 and later, which sees: Mistral or Ministral 3 inside."""

from pipeline.models.families.family import Wrapper

WRAPPER = Wrapper(
    name="mistral3", architecture="Mistral3ForConditionalGeneration", texts=("mistral", "ministral3"), tied=True
)

"""Mistral Small 3.1 and later, which sees: Mistral, Ministral 3 or Mistral 4 inside."""

from pipeline.models.families.family import Wrapper

WRAPPER = Wrapper(
    name="mistral3",
    architecture="Mistral3ForConditionalGeneration",
    texts=("mistral", "ministral3", "mistral4"),
    tied=True,
)

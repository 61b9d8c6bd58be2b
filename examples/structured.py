"""An answer as an object: `with_structured_output` with a pydantic class.

The schema guides the model token by token, so that also a small model's answer is valid (and still can be
wrong).

    python examples/structured.py
"""

from typing import Literal

from pydantic import BaseModel, Field

from chancellor import ChatVLLM


class Review(BaseModel):
    """What a review says."""

    product: str = Field(max_length=30)
    sentiment: Literal["positive", "negative"]


def main() -> None:
    """Read a review."""
    model = ChatVLLM(model="smollm2-135m-int8", temperature=0, max_tokens=64)
    reader = model.with_structured_output(Review)
    review = reader.invoke("The kettle broke after a week. I am very disappointed.")
    print(repr(review))


if __name__ == "__main__":
    main()

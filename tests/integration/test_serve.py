"""`chancellor serve` with a real engine, and the clients that people use. One server for all of it."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import psutil
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from chancellor import Catalog, ChatVLLM
from chancellor.engines import EnginePool
from tests.integration.conftest import INT8, PLAIN
from tests.integration.crowd import Crowd, streams
from tests.integration.served import Served, wait_until

pytestmark = pytest.mark.engine
SUM: Any = [{"role": "user", "content": "What is 2+2?"}]
GREEDY: dict[str, Any] = {"model": INT8, "temperature": 0, "max_tokens": 24}
CITY = {"type": "string", "enum": ["Paris", "Rome"]}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
    },
}


class Sum(BaseModel):
    """The result of a sum."""

    sign: Literal["plus", "minus"]
    result: Annotated[int, Field(ge=0, le=9)]


@pytest.fixture(scope="module")
def catalog_file(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the other tests, so that the engines of this process can be asked the same."""
    path = tmp_path_factory.mktemp("serve") / "chancellor.toml"
    entries = []
    for name in (INT8, PLAIN):
        spec = catalog[name]
        vllm = [f"vllm.{key} = {json.dumps(value)}" for key, value in spec.engine.vllm.items()]
        scheme = [] if spec.scheme is None else [f'scheme = "{spec.scheme}"']
        lines = [f'name = "{name}"', f'source = "{spec.source}"', f"trinity = {spec.trinity_score}"]
        engine = ["[models.engine]", f'dtype = "{spec.engine.dtype}"', *vllm]
        entries.append("\n".join(["[[models]]", *lines, f'tier = "{spec.tier}"', *scheme, *engine]))
    path.write_text("\n\n".join(entries))
    return path


@pytest.fixture(scope="module")
def server(catalog_file: Path) -> Iterator[Served]:
    with Served("--config", str(catalog_file), "--preload", INT8) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def test_the_openai_package(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chancellor", INT8, PLAIN]
    raw = client.chat.completions.with_raw_response.create(
        model="chancellor", messages=SUM, temperature=0, max_tokens=24, extra_body={"chancellor": {"decision": True}}
    )
    answer = raw.parse()
    assert "4" in (answer.choices[0].message.content or "")
    assert (answer.model, raw.headers["x-chancellor-model"], raw.headers["x-chancellor-complexity"]) == (
        INT8,
        INT8,
        "low",
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 37
    told = answer.chancellor  # type: ignore[attr-defined]
    assert told["decision"]["model"] == INT8
    assert (told["metrics"]["engine"], told["metrics"]["fallbacks"]) == ("vllm", [])
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=SUM)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=INT8, messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.code == "context_length_exceeded"


def test_a_stream_and_the_async_client(client: openai.OpenAI, server: Served) -> None:
    whole = client.chat.completions.create(messages=SUM, **GREEDY).choices[0].message.content
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks: Any = list(client.chat.completions.create(messages=SUM, **GREEDY, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3
    # On a busy machine some tokens come joined, but not nearly all of so many.
    longer: Any = {**GREEDY, "max_tokens": 120, "extra_body": {"ignore_eos": True}}
    assert len(list(client.chat.completions.create(messages=SUM, stream=True, **longer))) > 4

    async def both() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as asking:
            answer = await asking.chat.completions.create(messages=SUM, **GREEDY)
            stream: Any = await asking.chat.completions.create(messages=SUM, **GREEDY, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return answer.choices[0].message.content, text

    assert asyncio.run(both()) == (whole, whole)


def test_a_forced_tool(client: openai.OpenAI) -> None:
    asked: Any = {"messages": [{"role": "user", "content": "Weather in Rome?"}], "tools": [TOOL], **GREEDY}
    asked |= {"tool_choice": "required", "max_tokens": 64}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in CITY["enum"]
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.tool_calls is not None
    assert json.loads(final.tool_calls[0].function.arguments) == json.loads(call.function.arguments)
    messages = [*asked["messages"], choice.message.model_dump(exclude_none=True)]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "It rains."})
    again = client.chat.completions.create(messages=messages, tools=asked["tools"], tool_choice="none", **GREEDY)
    assert again.choices[0].message.content


def test_a_parsed_answer(client: openai.OpenAI) -> None:
    question = "What is 2+2? Answer as JSON with the keys sign and result."
    messages: Any = [{"role": "user", "content": question}]
    answer = client.chat.completions.parse(messages=messages, response_format=Sum, **{**GREEDY, "max_tokens": 60})
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    assert parsed.sign in ("plus", "minus")
    chosen = client.chat.completions.create(
        messages=SUM, **GREEDY, extra_body={"structured_outputs": {"choice": ["four", "five"]}}
    )
    assert chosen.choices[0].message.content in ("four", "five")
    for bad in (
        {"regex": "("},
        {"grammar": "root :="},
        {"structural_tag": "x"},
        {"json": {"type": "object", "$ref": "#/no"}},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(messages=SUM, **GREEDY, extra_body={"structured_outputs": bad})


def test_log_probabilities_several_answers_and_stop_texts(client: openai.OpenAI) -> None:
    asked: Any = {"messages": SUM, **GREEDY, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(one.token for one in choice.logprobs.content).startswith(choice.message.content or "?")
    assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in choice.logprobs.content)
    several = client.chat.completions.create(messages=SUM, model=INT8, n=3, temperature=1, max_tokens=16, seed=5)
    assert [one.index for one in several.choices] == [0, 1, 2]
    assert len({one.message.content for one in several.choices}) > 1
    text = choice.message.content or ""
    stopped = client.chat.completions.create(messages=SUM, **GREEDY, stop=["4"]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text.split("4")[0]


def test_a_seed(client: openai.OpenAI) -> None:
    def asked(seed: int) -> str | None:
        messages: Any = [{"role": "user", "content": "Tell me a story."}]
        answer = client.chat.completions.create(messages=messages, model=INT8, temperature=1, max_tokens=24, seed=seed)
        return answer.choices[0].message.content

    assert asked(3) == asked(3) != asked(4)


def test_raw_completions(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    whole = client.completions.create(prompt=prompt, **GREEDY, echo=True)
    assert whole.choices[0].text.startswith(prompt)
    text = whole.choices[0].text.removeprefix(prompt)
    assert "Paris" in text
    pieces = client.completions.create(prompt=prompt, **GREEDY, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text
    several = client.completions.create(prompt=[prompt, "One, two, three,"], **GREEDY)
    assert several.choices[0].text == text
    assert "four" in several.choices[1].text
    noted = client.completions.create(prompt=prompt, **{**GREEDY, "max_tokens": 4}, logprobs=2).choices[0].logprobs
    assert noted is not None
    assert noted.tokens is not None
    assert noted.text_offset == [len("".join(noted.tokens[:number])) for number in range(4)]
    with pytest.raises(openai.BadRequestError, match="none of the model's"):
        client.completions.create(prompt=[1, 999_999], **GREEDY)
    with pytest.raises(openai.BadRequestError, match="none of the model's"):
        client.completions.create(prompt=prompt, **GREEDY, logit_bias={"999999": 1})


def test_langchain_openai(server: Served) -> None:
    model = ChatOpenAI(model=INT8, base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=60)
    whole = model.invoke("What is 2+2?")
    assert "4" in whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] == 37
    assert "".join(chunk.text for chunk in model.stream("What is 2+2?")) == whole.text
    made = model.with_structured_output(Sum).invoke("What is 2+2? Answer as JSON with the keys sign and result.")
    assert isinstance(made, Sum)
    called = model.bind_tools([TOOL], tool_choice="weather").invoke("Weather in Rome?")
    assert called.tool_calls[0]["name"] == "weather"


@pytest.mark.parametrize("stream", [False, True])
def test_curl(server: Served, client: openai.OpenAI, stream: bool) -> None:
    body = json.dumps({**GREEDY, "messages": SUM, "stream": stream})
    arguments = ["-N"] if stream else []
    command = ["curl", "-sS", *arguments, f"{server.url}/v1/chat/completions", "-H", "content-type: application/json"]
    made = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True, timeout=120).stdout
    text = client.chat.completions.create(messages=SUM, **GREEDY).choices[0].message.content
    if stream:
        blocks = made.strip().split("\n\n")
        assert blocks.pop() == "data: [DONE]"
        chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
        made = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert made == text
    else:
        assert json.loads(made)["choices"][0]["message"]["content"] == text


def test_the_same_text_as_in_this_process(client: openai.OpenAI, catalog: Catalog, pool: EnginePool) -> None:
    question = "Name three colours."
    messages: Any = [{"role": "user", "content": question}]
    served = client.chat.completions.create(messages=messages, **{**GREEDY, "max_tokens": 48})
    model = ChatVLLM(model=INT8, catalog=catalog, pool=pool, temperature=0, max_tokens=48)
    assert model.invoke(question).text == served.choices[0].message.content


def test_five_hundred_callers_of_whom_a_third_hangs_up_and_five_hundred_more(
    server: Served, client: openai.OpenAI
) -> None:
    process = psutil.Process(server.process.pid)
    files, memory = process.num_fds(), []

    def idle() -> bool:
        client.chat.completions.create(messages=SUM, **{**GREEDY, "max_tokens": 1})  # engines tell at each step
        running = server.metric("chancellor_engine_requests_running")
        return {*running.values(), *server.metric("chancellor_engine_requests_waiting").values()} == {0.0}

    def ended(outcome: str, status: str) -> float:
        series = server.metric("chancellor_http_requests_total")
        return sum(value for labels, value in series.items() if f'{outcome}",' in labels and f'"{status}"' in labels)

    for _ in range(2):
        before = ended("cancelled", "499"), ended("cancelled", "200"), ended("error", "200")
        crowd = Crowd(server.url, 500, GREEDY)
        asyncio.run(crowd.come())
        assert crowd.counts == {"answered": 333, "gone": 167}
        assert crowd.statuses == {200}
        wait_until(idle, 60)
        wait_until(lambda: process.num_fds() <= files + 10, 60)
        # But for this very look, which finds what has ended counted.
        wait_until(lambda: server.metric("chancellor_http_requests_running") == {"": 1.0}, 60)
        early, late = ended("cancelled", "499") - before[0], ended("cancelled", "200") - before[1]
        # But for those of the 42 streams whose first token was sooner than their hanging up; whole answers never are.
        assert 83 < early <= 125
        assert 125 < early + late <= 167  # but for those whose answer was ready in one piece
        assert ended("error", "200") == before[2]
        memory.append(process.memory_info().rss)
    assert memory[1] < memory[0] + 60 * 2**20
    assert "4" in (client.chat.completions.create(messages=SUM, **GREEDY).choices[0].message.content or "")


def test_streams_outlive_a_killed_engine(server: Served) -> None:
    workers = [one for one in server.children() if "EngineCore" in " ".join([one.name(), *one.cmdline()])]
    assert workers
    body = {**GREEDY, "max_tokens": 120, "ignore_eos": True, "chancellor": {"decision": True}}
    found = asyncio.run(streams(server.url, body, lambda: workers[-1].kill()))
    for chunks in found:
        assert chunks[-1] == "[DONE]"
        metrics = json.loads(chunks[-2])["chancellor"]["metrics"]
        assert metrics["output_tokens"] == 120
        assert [step["step"] for step in metrics["fallbacks"]] == ["restart"]


def test_sigterm_lets_streams_finish(server: Served) -> None:
    body = {**GREEDY, "max_tokens": 80, "ignore_eos": True}
    below = server.children()
    found = asyncio.run(streams(server.url, body, lambda: os.kill(server.process.pid, signal.SIGTERM)))
    assert [chunks[-1] for chunks in found] == ["[DONE]"] * len(found)
    assert server.process.wait(60) == 0, server.errors()
    _, left = psutil.wait_procs(below, timeout=30)
    assert left == []
    assert not any("Traceback" in line for line in server.lines), server.errors()
    answers = [line for line in server.logged() if line.get("method") == "POST"]
    assert {line["status"] for line in answers} <= {200, 400, 404, 499}

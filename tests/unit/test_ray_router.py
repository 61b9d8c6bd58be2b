"""What stands before the replicas under Ray Serve, without a cluster: what is asked again, refused, counted, told."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from chancellor.server import ServeOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic
COMPLETIONS = "/v1/completions"


class Process:
    """Stands for Ray's result of one process."""

    def __init__(self, does: Any) -> None:
        self._does = does
        self.cancelled = False

    async def get_async(self) -> Any:
        if self._does == "hang":
            await asyncio.sleep(3600)
        if isinstance(self._does, BaseException):
            raise self._does
        return self._does

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Stands for Ray's handle: each call does what comes next in `does`, and `broadcast` asks `processes`."""

    def __init__(self, *does: list[Any], processes: Any = ()) -> None:
        self._does = list(does)
        self._processes = processes
        self.asked: list[tuple[dict[str, Any], bytes]] = []
        self.cancelled = 0

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> "Handle":
        self.asked.append((scope, body))
        self._now = self._does.pop(0)
        return self

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._now:
            if item == "hang":
                await asyncio.sleep(3600)
            if isinstance(item, BaseException):
                raise item
            yield item

    def cancel(self) -> None:
        self.cancelled += 1

    def broadcast(self, method: str) -> "Handle":
        assert method == "metrics"
        return self

    async def _fetch_replica_results_async(self) -> Any:
        if isinstance(self._processes, BaseException):
            raise self._processes
        return self._processes


def start(status: int = 200, kind: bytes = b"application/json") -> dict[str, Any]:
    headers = [(b"content-type", kind), (b"x-request-id", b"1")]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


WHOLE = [[start(), body(b"whole")]]
BEGUN = [start(kind=b"text/event-stream; charset=utf-8"), body(b"data: 1\n\n", more=True)]


class Routed:
    """A router before such replicas, and a caller."""

    def __init__(
        self, *does: list[Any], retries: int = 2, replicas: Any = (), routers: Any = (), **options: Any
    ) -> None:
        from chancellor.server.ray_router import Router

        self.replicas = Handle(*does, processes=replicas)
        self.app = Router(self.replicas, Handle(processes=routers), ServeOptions(**options), retries).application()

    async def ask(self, method: str = "POST", path: str = COMPLETIONS, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, content=b"asked" if method == "POST" else None, **more)

    def counted(self) -> dict[tuple[str, str, str], float]:
        """Return what the router has counted, by route, status and outcome."""
        names = ("route", "status", "outcome")
        return {
            (sample.labels[names[0]], sample.labels[names[1]], sample.labels[names[2]]): sample.value
            for family in self.app.state.registry.collect()
            for sample in family.samples
            if sample.name == "chancellor_http_requests_total"
        }


def died() -> Exception:
    from ray.exceptions import ActorDiedError

    return ActorDiedError()


def full() -> Exception:
    from ray.serve.exceptions import BackPressureError

    return BackPressureError(num_queued_requests=9, max_queued_requests=9)


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_what_is_asked_again() -> None:
    from ray.exceptions import ActorUnavailableError

    routed = Routed([died()], [ActorUnavailableError("gone", None)], WHOLE)
    response = await routed.ask(path=f"{COMPLETIONS}?a=b")
    assert (response.status_code, response.text) == (200, "whole")
    assert "x-request-id" not in response.headers  # Ray's proxy has one
    assert [asked for _, asked in routed.replicas.asked] == [b"asked"] * 3
    assert routed.replicas.asked[-1][0]["query_string"] == b"a=b"
    assert routed.counted() == {(COMPLETIONS, "200", "ok"): 1.0}

    # Headers alone are no beginning.
    assert (await Routed([[start()], died()], WHOLE).ask()).text == "whole"
    response = await Routed([[start(503), body(b"no engine")]], WHOLE).ask()
    assert (response.status_code, response.text) == (200, "whole")
    response = await Routed([[start(503), body(b"no engine")]], retries=0).ask()
    assert (response.status_code, response.text) == (503, "no engine")
    response = await Routed([died()], [died()], WHOLE, retries=1).ask()
    assert code_of(response) == (503, "replica_died")
    assert response.headers["retry-after"] == "1"


async def test_a_replica_that_cancels_its_requests_is_as_good_as_dead() -> None:
    # Ray tells so by a cancellation, though nobody here has hung up.
    assert (await Routed([asyncio.CancelledError()], WHOLE).ask()).text == "whole"
    assert code_of(await Routed([asyncio.CancelledError()], retries=0).ask()) == (503, "replica_died")
    response = await Routed([BEGUN, asyncio.CancelledError()]).ask()
    assert "replica_died" in response.text


async def test_what_has_begun_cannot_go_on_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    routed = Routed([BEGUN, died()], WHOLE)
    with caplog.at_level(logging.INFO, "chancellor"):
        response = await routed.ask()
    first, second, rest = response.text.split("\n\n")
    assert (first, rest) == ("data: 1", "")
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "replica_died"
    assert routed.counted() == {(COMPLETIONS, "200", "error"): 1.0}
    (line,) = (record for record in caplog.records if record.message == "request")
    assert (line.status, line.error) == (200, "replica_died")  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):  # its form has no place for an error: the connection is closed
        await Routed([[start(), body(b"half", more=True)], died()], WHOLE).ask()


async def test_comments_are_no_beginning() -> None:
    waits = [start(kind=b"text/event-stream"), body(b": ping\n\n", more=True)]
    answers = [start(kind=b"text/event-stream"), body(b"data: 1\n\n", more=True)], [body(b"data: [DONE]\n\n")]
    routed = Routed([waits, [body(b": ping\n\n: ping\n\n", more=True)], died()], [waits, died()], list(answers))
    response = await routed.ask()
    assert response.headers["content-type"] == "text/event-stream"  # one head, however many replicas
    assert [line for line in response.text.splitlines() if line] == [": ping"] * 4 + ["data: 1", "data: [DONE]"]
    assert routed.counted() == {(COMPLETIONS, "200", "ok"): 1.0}

    # What comes with a comment is one; from then on, nothing is asked again.
    both = [start(kind=b"text/event-stream"), body(b": ping\n\ndata: 1\n\n", more=True)]
    routed = Routed([both, died()], list(answers))
    assert "replica_died" in (await routed.ask()).text
    assert len(routed.replicas.asked) == 1


async def test_a_refusal_after_comments_is_an_event() -> None:
    waits = [start(kind=b"text/event-stream"), body(b": ping\n\n", more=True)]
    for does in ([start(429), body(b'{"error":', more=True)], [body(b'{"code":"busy"}}')]), [died()]:
        routed = Routed([waits, died()], list(does), retries=1)
        response = await routed.ask()
        (comment, told, end) = response.text.split("\n\n")
        assert (response.status_code, comment, end) == (200, ": ping", "")
        assert "code" in json.loads(told.removeprefix("data: "))["error"]
        assert routed.counted() == {(COMPLETIONS, "200", "error"): 1.0}


async def test_a_stream_that_ends_with_an_error_of_the_replica_is_counted_as_such() -> None:
    from chancellor.server.errors import Refusal
    from chancellor.server.forms import event

    routed = Routed([BEGUN, [body(event(Refusal(503, "Dead.").body()), more=True)], [body(b"")]])
    assert "Dead." in (await routed.ask()).text
    assert routed.counted() == {(COMPLETIONS, "200", "error"): 1.0}


async def test_a_replica_that_dies_after_its_last_word_has_answered() -> None:
    routed = Routed([*WHOLE, died()])
    assert (await routed.ask()).text == "whole"
    assert routed.counted() == {(COMPLETIONS, "200", "ok"): 1.0}


async def test_a_replica_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chancellor.server.ray_router._QUIET", (0.05, 0.0))
    routed = Routed([BEGUN, "hang"])
    response = await asyncio.wait_for(routed.ask(), 30)
    assert json.loads(response.text.split("\n\n")[1].removeprefix("data: "))["error"]["code"] == "no_replica"
    assert routed.replicas.cancelled == 1


async def test_no_replica_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chancellor.server.ray_router._LOOK_S", 0.05)
    monkeypatch.setattr("chancellor.server.ray_router._MARGIN_S", 0.05)
    for method in ("GET", "POST"):
        routed = Routed(["hang"], timeout_s=0.01)
        assert code_of(await asyncio.wait_for(routed.ask(method), 30)) == (503, "no_replica")
        assert routed.replicas.cancelled == 1


async def test_who_stops_reading_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from chancellor.server.ray_router import _Answer

    monkeypatch.setattr("chancellor.server.ray_router._QUIET", (0.05, 0.0))
    take = _Answer.take

    async def slowly(answer: _Answer, messages: Any) -> None:
        if answer.begun:
            await asyncio.sleep(0.2)
        await take(answer, messages)

    monkeypatch.setattr(_Answer, "take", slowly)
    response = await Routed([BEGUN, [body(b"data: 2\n\n", more=True)], [body(b"data: [DONE]\n\n")]]).ask()
    assert response.text.endswith("data: 2\n\ndata: [DONE]\n\n")


async def test_who_hangs_up_is_noted_as_such_and_frees_the_replica() -> None:
    routed = Routed(["hang"])
    asking = asyncio.create_task(routed.ask())
    while not routed.replicas.asked:  # noqa: ASYNC110 - it has no event for it
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert routed.replicas.cancelled == 1
    assert routed.counted() == {(COMPLETIONS, "499", "cancelled"): 1.0}


@pytest.mark.parametrize(
    ("does", "options", "headers", "status", "code"),
    [
        (full, {}, {}, 429, "server_busy"),
        (died, {}, {}, 503, "replica_died"),
        (None, {"api_keys": "sesame"}, {}, 401, "invalid_api_key"),
        (None, {"max_body_mib": 0.000001}, {}, 413, "request_too_large"),
        (None, {}, {"host": "evil.example"}, 421, "wrong_host"),
    ],
)
async def test_what_a_router_refuses_is_counted_and_logged(
    does: Callable[[], Exception] | None,
    options: dict[str, Any],
    headers: dict[str, str],
    status: int,
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    routed = Routed([does()] if does is not None else WHOLE, retries=0, **options)
    with caplog.at_level(logging.INFO, "chancellor"):
        response = await routed.ask(headers={"authorization": "Bearer open", **headers})
    assert code_of(response) == (status, code)
    assert bool(routed.replicas.asked) == (does is not None)  # the others never get that far
    route = COMPLETIONS if does is not None else "other"
    assert routed.counted() == {(route, str(status), "error"): 1.0}
    (line,) = (record for record in caplog.records if record.message == "request")
    assert (line.status, line.path) == (status, COMPLETIONS)  # type: ignore[attr-defined]
    assert "open" not in str(vars(line))
    assert "sesame" not in caplog.text


async def test_names_are_looked_at_before_the_routers_own_pages_too() -> None:
    for path in ("/metrics", "/v1/models"):
        response = await Routed(WHOLE).ask("GET", path, headers={"host": "evil.example"})
        assert code_of(response) == (421, "wrong_host")
    assert (await Routed(WHOLE).ask("GET", "/health", headers={"host": "10.0.0.7"})).status_code == 200  # a probe's
    assert (await Routed(WHOLE, api_keys="sesame").ask("GET", "/health", headers={"host": "x"})).status_code == 200


def test_a_websocket_is_refused() -> None:
    routed = Routed()
    with TestClient(routed.app, base_url="http://localhost") as client, pytest.raises(WebSocketDisconnect):
        client.websocket_connect("/v1/realtime").__enter__()
    assert routed.replicas.asked == []


def test_metrics_of_several_processes_as_one_text() -> None:
    from chancellor.server.ray_metrics import merged

    text = '# HELP a_total A.\n# TYPE a_total counter\na_total{model="x"} %d\n'
    lines = merged({"replica": {"one": text % 3, "two": text % 4}, "router": {"one": text % 5}}).decode().splitlines()
    assert 'a_total{model="x",replica="one"} 3.0' in lines
    assert 'a_total{model="x",replica="two"} 4.0' in lines
    assert 'a_total{model="x",router="one"} 5.0' in lines
    assert lines.count("# TYPE a_total counter") == 1


async def test_a_process_that_hangs_or_dies_takes_no_metrics_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chancellor.server.ray_metrics._SCRAPE_S", 0.1)
    hung = Process("hang")
    well = Process(("one", "a 1\n")), Process(("two", "a 2\n"))
    routed = Routed(replicas=[hung, well[0], Process(died()), Process(asyncio.CancelledError()), well[1]])
    response = await asyncio.wait_for(routed.ask("GET", "/metrics"), 30)
    assert response.status_code == 200
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    assert sorted(lines) == ['a{replica="one"} 1.0', 'a{replica="two"} 2.0']
    assert hung.cancelled


async def test_metrics_of_routers_are_there_without_replicas() -> None:
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import DeploymentUnavailableError

    gone = DeploymentUnavailableError(DeploymentID("Engines", "default"))
    response = await Routed(replicas=gone, routers=[Process(("one", "a 1\n"))]).ask("GET", "/metrics")
    assert (response.status_code, response.text.splitlines()[-1]) == (200, 'a{router="one"} 1.0')


async def test_more_than_a_router_may_have_under_way_is_told_to_come_again() -> None:
    routed = Routed(["hang"], WHOLE, max_requests=1)
    waiting = asyncio.create_task(routed.ask())
    while not routed.replicas.asked:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.01)
    answer = await routed.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "server_busy")
    assert (await routed.ask("GET", "/health")).status_code == 200
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (await routed.ask()).status_code == 200

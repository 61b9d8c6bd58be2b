"""What the routes share: models, engines, and the way from a request to its answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chancellor.catalog import Catalog
from chancellor.chat.messages import message_of
from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.errors import ChancellorError, GenerationTimeoutError
from chancellor.nodes import metrics_node
from chancellor.server.choice import CHANCELLOR, Choice, Chooser
from chancellor.server.errors import Refusal, refusal_of
from chancellor.server.event_stream import EventStream
from chancellor.server.exchange import ClientGoneError, gathered, streamed, unless_gone
from chancellor.server.forms import DONE, Form, event, usage_of
from chancellor.server.logs import CLIENT_GONE
from chancellor.server.options import ServeOptions
from chancellor.server.readiness import Readiness
from chancellor.server.requests import ChatCompletionRequest, CompletionRequest
from chancellor.telemetry.requests import CANCELLED

__all__ = ["Service"]

logger = logging.getLogger(__name__)
Asked = ChatCompletionRequest | CompletionRequest
Stream = AsyncGenerator[tuple[int, Delta], None]
_record = metrics_node()  # the graph's fourth


class Service:
    """Answers requests with the models of a catalog."""

    def __init__(self, catalog: Catalog, options: ServeOptions, pool: EnginePool, chooser: Chooser) -> None:
        self.catalog = catalog
        self.options = options
        self.pool = pool
        self.chooser = chooser
        self.readiness = Readiness(catalog, options, pool, chooser)

    async def respond(self, request: Request, asked: Asked, form: Form) -> Response:
        """Return the response to a request for text.

        Raises:
            ChancellorError: there is no answer.
        """
        notes: dict[str, Any] = request.state.notes
        try:
            async with asyncio.timeout(self.options.timeout_s):  # what is streamed has the engine's deadline, too
                return await unless_gone(request, self._respond(asked, form, notes))
        except TimeoutError as error:
            raise GenerationTimeoutError(f"The answer was not there after {self.options.timeout_s:g} s.") from error
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)  # for the log: nobody gets it

    async def _respond(self, asked: Asked, form: Form, notes: dict[str, Any]) -> Response:
        requests = form.requests(self.options)
        choice = await self._choose(asked, form, requests[0])
        notes |= {"model": choice.spec.name, "stream": bool(asked.stream), "choices": len(requests)}
        if not asked.stream:
            answers = await gathered(self.pool, choice, requests)
            lasts = [deltas[-1] for deltas in answers]
            form.answered_by(lasts[0].model or choice.spec.name)
            body = form.whole(answers).model_dump(mode="json", exclude_unset=True)
            if asked.chancellor.decision:
                body["chancellor"] = await _explained(choice, lasts)
            self._note(notes, form, lasts, answers)
            return JSONResponse(body, headers=choice.headers(self.catalog.get(form.model)))
        stream = streamed(self.pool, choice, requests)
        first = asyncio.ensure_future(anext(stream))
        try:
            # Until something is sent, an error has a status of its own. Proxies do not wait for ever.
            await asyncio.wait({first}, timeout=self.options.ping_s)
            if first.done():
                form.answered_by(first.result()[1].model or choice.spec.name)
        except BaseException:
            first.cancel()
            await asyncio.wait({first})
            await stream.aclose()
            raise
        return EventStream(
            self._events(asked, form, choice, first, stream, notes),
            headers=choice.headers(self.catalog.get(form.model)),
            ping_s=self.options.ping_s,
            stalled_s=self.options.timeout_s,
        )

    async def _choose(self, asked: Asked, form: Form, one: GenerationRequest) -> Choice:
        if asked.model == CHANCELLOR:
            return await self.chooser.choose(
                form.routed(), asked.chancellor.policy, max_tokens=one.max_tokens, tools=one.tools or ()
            )
        return self.chooser.named(asked.model)

    async def _events(
        self,
        asked: Asked,
        form: Form,
        choice: Choice,
        first: "asyncio.Future[tuple[int, Delta]]",
        stream: Stream,
        notes: dict[str, Any],
    ) -> AsyncGenerator[bytes, None]:
        begun: set[int] = set()
        lasts: dict[int, Delta] = {}
        kept: dict[int, list[Delta]] = {}
        try:
            index, delta = await first
            form.answered_by(delta.model or choice.spec.name)
            item: tuple[int, Delta] | None = (index, delta)
            while item is not None:
                index, delta = item
                made = form.piece(index, delta)
                if index not in begun:
                    begun.add(index)
                    made = form.opening(index) + made
                if delta.finish_reason is not None:
                    lasts[index] = delta
                if self.options.log_prompts:
                    kept.setdefault(index, []).append(delta)
                if made:
                    yield made
                item = await anext(stream, None)
            ordered = [lasts[index] for index in sorted(lasts)]
            more = {"chancellor": await _explained(choice, ordered)} if asked.chancellor.decision else None
            if asked.usage_wanted or more is not None:
                yield form.ending(usage_of(ordered, form.prompts) if asked.usage_wanted else None, more)
            self._note(notes, form, ordered, [kept.get(index, []) for index in sorted(lasts)])
            yield DONE
        except (asyncio.CancelledError, GeneratorExit):
            notes["error"] = CANCELLED
            raise
        except ChancellorError as error:
            refusal = refusal_of(error)
            notes["error"] = type(error).__name__
            if refusal.status >= 500:
                logger.warning("%s: %s", type(error).__name__, error)
            yield event(refusal.body())
        except Exception as error:
            logger.exception("A stream failed")
            notes["error"] = type(error).__name__
            yield event(
                Refusal(500, "The server failed in the middle of the answer; its log says why.", "server_error").body()
            )
        finally:
            await stream.aclose()

    def _note(self, notes: dict[str, Any], form: Form, lasts: list[Delta], answers: list[list[Delta]]) -> None:
        usage = usage_of(lasts, form.prompts)
        notes |= {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        notes |= {"model": form.model, "finish_reasons": [last.finish_reason for last in lasts]}
        if steps := [step["step"] for last in lasts for step in last.fallbacks]:
            notes["fallbacks"] = steps
        if self.options.log_prompts:
            notes["prompt"] = form.asked_text()
            notes["answers"] = ["".join(delta.text for delta in deltas) for deltas in answers]


async def _explained(choice: Choice, lasts: Sequence[Delta]) -> dict[str, Any]:
    """Return how the model was chosen, and the metrics of all choices together."""
    last = lasts[0] if len(lasts) == 1 else _together(lasts)
    noted = {
        "engine": last.engine,
        "quantization": last.quantization,
        "inference_time_s": last.inference_time_s,
        "time_to_first_token_s": last.time_to_first_token_s,
        "fallbacks": last.fallbacks,
    }
    recorded = await _record.ainvoke({"messages": [message_of([last], noted)]})
    return {"complexity": choice.complexity, "decision": choice.decision, **recorded}


def _together(lasts: Sequence[Delta]) -> Delta:
    firsts = [one.time_to_first_token_s for one in lasts if one.time_to_first_token_s is not None]
    return replace(
        lasts[0],
        output_tokens=sum(one.output_tokens or 0 for one in lasts),
        inference_time_s=max(one.inference_time_s or 0.0 for one in lasts),
        time_to_first_token_s=min(firsts, default=None),
        fallbacks=tuple(step for one in lasts for step in one.fallbacks),
    )

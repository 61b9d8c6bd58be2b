"""The page at `/` in a real browser, against the real endpoint with fake engines."""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

from tests.integration.page_server import BAD, Line, Talker, served, wait_until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = "CHANCELLOR_BROWSER_REQUIRED"  # set where a run without these tests would be none
pytestmark = pytest.mark.skipif(BROWSER is None and REQUIRED not in os.environ, reason="no Chromium is installed")
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
WATCH = (
    "window.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective))"
)
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=30_000)  # for machines with much else to do
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture(autouse=True)
def engine() -> Iterator[type[Talker]]:
    Talker.reset()
    yield Talker
    Talker.reset()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Open the page; in the end, nothing must have gone wrong in it, nor have left the server's origin."""
    opened: list[tuple[BrowserContext, Page, str, list[str], list[str]]] = []

    def open_page(at: str = address, **options: Any) -> Page:
        context = browser.new_context(**({"viewport": WIDE} | options))
        page = context.new_page()
        wrong: list[str] = []
        urls: list[str] = []

        def dialog(found: Dialog) -> None:
            wrong.append(found.message)
            found.dismiss()

        page.add_init_script(WATCH)
        page.on("console", lambda one: wrong.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", dialog)
        context.on("request", lambda request: urls.append(request.url))
        page.goto(at)
        expect(page.get_by_label("Model", exact=True).locator("option").last).not_to_be_empty()
        opened.append((context, page, at, wrong, urls))
        return page

    yield open_page
    for context, page, at, wrong, urls in opened:
        assert [one for one in wrong if not one.startswith("Failed to load resource")] == []  # 401, 429: on purpose
        assert page.evaluate("violations") == []
        assert [url for url in urls if not url.startswith((f"{at}/", "data:image/svg+xml"))] == []
        context.close()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your question").fill(text)
    page.get_by_label("Your question").press("Enter")


def answer(page: Page) -> Any:
    return page.locator(".answer .text").last


def done(page: Page) -> None:
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_text("Why this model, and what it took").last).to_be_visible()


def name_of_focus(page: Page) -> str:
    return str(page.evaluate("(({id, innerText}) => id || innerText.trim())(document.activeElement)"))


def test_with_the_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    expect(page.get_by_label("Your question")).to_be_focused()
    page.locator("a").first.focus()
    reached = []
    for _ in range(13):
        page.keyboard.press("Tab")
        reached.append(name_of_focus(page).split("\n")[0])
        outline = "(one) => getComputedStyle(one).outlineStyle + getComputedStyle(one.parentElement).boxShadow"
        assert page.evaluate(f"({outline})(document.activeElement)") != "nonenone", reached
    fields = ["Settings", "model", "policy", "temperature", "max-tokens", "System prompt", "Live"]
    assert reached[:7] == fields
    assert reached[7].startswith("What is the capital")
    assert reached[10:] == ["question", "new", "ask"]
    for _ in reached:
        page.keyboard.press("Shift+Tab")
    assert name_of_focus(page) == "Skip to the question"
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(answer(page)).to_have_text("light says: one\ntwo", use_inner_text=True)
    expect(page.get_by_label("Your question")).to_be_focused()
    expect(page.get_by_label("Your question")).to_have_value("")


def test_the_answer_comes_piece_by_piece(open_page: Open, engine: type[Talker]) -> None:
    page = open_page()
    engine.allowed = 3
    ask(page, "one two three")
    expect(answer(page)).to_have_text("light says: one")
    expect(answer(page)).to_have_attribute("aria-live", "polite")
    expect(answer(page)).to_have_attribute("aria-busy", "true")
    head = page.locator(".head")  # from the headers: the end has not come yet
    expect(head).to_contain_text("light")
    expect(head).to_contain_text("Trinity 96")
    expect(head).to_contain_text("low complexity")
    expect(head).to_contain_text("the light model")
    engine.allowed = 1
    expect(answer(page)).to_have_text("light says: one two")
    engine.allowed = math.inf
    expect(answer(page)).to_have_text("light says: one two three")
    expect(answer(page)).to_have_attribute("aria-busy", "false")


def test_thousands_of_tokens(open_page: Open) -> None:
    page = open_page()
    ask(page, "so much")
    done(page)
    text = str(answer(page).text_content())
    assert text == "".join(f"{number} " for number in range(5_000)) + "light says: so much"
    assert answer(page).evaluate("(one) => one.childNodes.length") < 2_500
    end = "innerHeight + scrollY >= document.documentElement.scrollHeight - 2"
    wait_until(lambda: page.evaluate(end))  # it follows with the next frame


def test_who_reads_above_is_left_there(open_page: Open, engine: type[Talker]) -> None:
    page = open_page()
    ask(page, "word\n" * 100)
    done(page)
    engine.allowed = 2
    ask(page, "one two three")
    expect(answer(page)).to_have_text("light says:")
    page.mouse.move(800, 300)
    page.mouse.wheel(0, -900)
    below = "document.documentElement.scrollHeight - innerHeight - scrollY"
    wait_until(lambda: page.evaluate(below) > 300)  # wait_for_function polls by eval, which the policy forbids

    def at_rest() -> bool:  # browsers may scroll little by little
        before = page.evaluate("scrollY")
        page.wait_for_timeout(500)
        return bool(page.evaluate("scrollY") == before)

    wait_until(at_rest)
    above = page.evaluate("scrollY")
    engine.allowed = math.inf
    done(page)
    assert page.evaluate("scrollY") == above


def test_why_and_what_it_took(open_page: Open) -> None:
    page = open_page()
    ask(page, "Please think aloud and explain the sky to me in few and simple words")
    done(page)
    expect(page.locator(".head")).to_contain_text("strong")
    expect(page.locator(".head")).to_contain_text("high complexity")
    page.get_by_text("Why this model, and what it took").click()
    why = page.locator(".why")
    expect(why).to_contain_text("high: asks to explain (analyzer rules)")
    expect(why).to_contain_text("strong: high complexity: the strong model (policy trinity)")
    rows = why.get_by_role("table").get_by_role("row")
    expect(rows).to_have_count(5)
    expect(rows.nth(1)).to_have_text(re.compile("^lightpassed over96.1,000(runs|.)$"))
    expect(rows.nth(3)).to_contain_text("chosen: high complexity: the strong model")
    expect(rows.nth(4)).to_contain_text("rejected: Trinity score 90 is below the minimum of 95")
    took = dict(zip(why.locator("dt").all_inner_texts(), why.locator("dd").all_inner_texts(), strict=True))
    assert took.pop("Memory of the process").endswith("iB")
    expected = {"Engine": "fake", "Quantization": "none", "Time to first token": "100 ms", "Inference time": "500 ms"}
    figures = {"Tokens in": "3", "Tokens out": "16", "Tokens/s": "32"}
    assert {name: took[name] for name in expected | figures} == expected | figures


def test_what_a_model_says_is_text(open_page: Open) -> None:
    page = open_page()
    before = page.evaluate("document.querySelectorAll('*').length")
    hostile = f"think {BAD}<svg onload=alert(3)></svg><a href='javascript:alert(4)'>x</a>&lt;b&gt;"
    ask(page, hostile)
    done(page)
    expect(answer(page)).to_have_text(f"light says: {hostile}")
    expect(page.locator(".question")).to_have_text(hostile)
    expect(page.locator(".thoughts-text")).to_have_text(f"Let me think: {BAD}")
    ask(page, "break into three or four")
    expect(page.get_by_role("alert")).to_contain_text(f"It broke: {BAD}")
    assert page.locator("main").locator("img, script, a, iframe, object, svg").count() == 0
    assert page.evaluate("document.querySelectorAll('*').length") > before


@pytest.mark.parametrize("key", ["Escape", "Enter"])
def test_stop(open_page: Open, engine: type[Talker], key: str) -> None:
    page = open_page()
    engine.allowed = 4
    page.get_by_label("Your question").fill("one two three")
    page.get_by_role("button", name="Ask", exact=True).press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    expect(answer(page)).to_have_text("light says: one two")
    page.keyboard.press(key)
    wait_until(lambda: engine.aborted == ["one two three"])
    expect(page.get_by_text("Stopped after")).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()
    engine.allowed = math.inf
    page.get_by_role("button", name="Ask again").click()
    expect(answer(page)).to_have_text("light says: one two three")
    assert page.locator(".answer").count() == 1


def test_stop_before_the_first_token(open_page: Open, engine: type[Talker]) -> None:
    page = open_page()
    engine.allowed = 0
    ask(page, "nothing yet")
    expect(page.get_by_text("Waiting for the first token")).to_be_visible()
    wait_until(lambda: engine.running == 1)
    page.keyboard.press("Escape")
    wait_until(lambda: engine.running == 0)
    expect(page.get_by_text("Stopped after")).to_be_visible()


def test_a_conversation_and_its_settings(open_page: Open, engine: type[Talker]) -> None:
    page = open_page()
    page.get_by_text("System prompt").first.click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Max. tokens").fill("17")
    page.get_by_label("Policy").select_option("strong")
    ask(page, "first")
    done(page)
    expect(page.locator(".head")).to_contain_text("the policy always takes the strong model")
    ask(page, "die")  # a question without an answer is left out of what follows
    expect(page.get_by_role("alert")).to_contain_text("The fake died.")
    models = page.get_by_label("Model", exact=True)
    assert [one.split(" — ")[0] for one in models.locator("option").all_inner_texts()] == [
        *("chancellor", "light", "best", "strong"),
    ]
    models.select_option("best")
    expect(page.get_by_label("Policy")).to_be_disabled()
    expect(page.locator("#model-facts")).to_contain_text("Trinity score 99")
    ask(page, "second")
    expect(answer(page)).to_have_text("best says: second")
    done(page)
    request = engine.requests[-1]
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "strong says: first"},
        {"role": "user", "content": "second"},
    ]
    assert (request.temperature, request.max_tokens) == (0.3, 17)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "third, cut")
    done(page)
    assert [one["content"] for one in engine.requests[-1].messages] == ["Be brief.", "third, cut"]
    expect(page.get_by_text("It ends here because max. tokens")).to_be_visible()
    page.get_by_label("Temperature").fill("9")
    ask(page, "fourth")
    assert page.get_by_label("Temperature").evaluate("(one) => one.matches(':invalid')")
    expect(page.locator(".turn")).to_have_count(1)


def test_a_key(open_page: Open) -> None:
    with served(api_keys=("sesame",)) as address:
        page = open_page(address)
        key = page.get_by_label("API key", exact=True)
        expect(key).to_be_focused()
        ask(page, "hello")
        expect(page.get_by_role("alert")).to_contain_text("There is no API key.")
        expect(page.get_by_role("alert")).to_contain_text("Enter the server's API key below.")
        key.fill("wrong")
        key.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("The API key is wrong.")
        expect(page.get_by_text("The server does not take this key.")).to_be_visible()
        key.fill("sesame")
        key.press("Enter")
        expect(answer(page)).to_have_text("light says: hello")
        expect(key).to_be_hidden()
        expect(page.get_by_label("Model", exact=True).locator("option")).to_have_count(4)
        expect(page.locator("#running")).to_have_text("0")
        stored = page.evaluate("[Object.values(sessionStorage), Object.keys(localStorage), document.cookie]")
        assert stored == [["sesame"], [], ""]
        assert "sesame" not in page.content()
        page.reload()
        expect(page.get_by_label("Model", exact=True).locator("option")).to_have_count(4)
        page.get_by_role("button", name="Forget the API key").click()
        assert page.evaluate("Object.keys(sessionStorage)") == []


def test_too_many_requests(open_page: Open, engine: type[Talker]) -> None:
    with served(max_requests=1) as address:
        page = open_page(address)
        page.clock.install()
        page.reload()
        body = {"model": "best", "messages": [{"role": "user", "content": "long"}], "stream": True}
        with httpx.Client() as other:
            engine.allowed = 1
            request = other.build_request("POST", f"{address}/v1/chat/completions", json=body, timeout=60)
            held = other.send(request, stream=True)
            page.clock.pause_at(page.evaluate("Date.now() + 3600000"))
            ask(page, "hello")
            expect(page.get_by_role("alert")).to_contain_text("1 requests are under way")
            again = page.get_by_role("button", name="Ask again in 1 s")
            expect(again).to_be_disabled()
            engine.allowed = math.inf
            held.read()
        page.clock.resume()
        again = page.get_by_role("button", name="Ask again", exact=True)
        expect(again).to_be_enabled()
        again.click()
        expect(answer(page)).to_have_text("light says: hello")


def test_a_lost_connection_keeps_what_has_come(open_page: Open, address: str, engine: type[Talker]) -> None:
    line = Line(address)
    page = open_page(line.address)
    engine.allowed = 4
    ask(page, "one two three")
    expect(answer(page)).to_have_text("light says: one two")
    line.cut()
    expect(page.get_by_role("alert")).to_contain_text("The connection was lost before the answer was complete.")
    expect(answer(page)).to_have_text("light says: one two")
    engine.allowed = math.inf
    page.get_by_role("button", name="Ask again").click()
    expect(answer(page)).to_have_text("light says: one two three")
    done(page)
    line.close()
    ask(page, "more")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    expect(page.locator("#server")).to_have_text("unreachable")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_cut_anywhere(open_page: Open, end: str) -> None:
    page = open_page()
    lines = [
        ": ping",
        "",
        "data: {1}",
        "",
        "event: x",
        "data:zwei 🙂ü",
        "data: drei",
        "",
        ": ping",
        "data",
        "id: 4",
        "",
        "data: [DONE]",
        "",
    ]
    read = """async ([bytes]) => {
        const { events } = await import("/client.js");
        const all = new Set();
        for (let first = 0; first <= bytes.length; first++) {
            for (const second of [first, first + 1, first + 3]) {
                const cuts = [[0, first], [first, second], [second, bytes.length]];
                const chunks = cuts.map(([from, to]) => new Uint8Array(bytes.slice(from, to)));
                const start = (to) => { chunks.forEach((one) => to.enqueue(one)); to.close(); };
                const stream = new ReadableStream({ start });
                const found = [];
                for await (const event of events(stream)) found.push(event);
                all.add(JSON.stringify(found));
            }
        }
        return [...all].map((one) => JSON.parse(one));
    }"""
    text = "".join(f"{line}{end}" for line in lines)
    assert page.evaluate(read, [list(text.encode())]) == [["{1}", "zwei 🙂ü\ndrei", "[DONE]"]]


def test_live_figures(open_page: Open, engine: type[Talker]) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    expect(page.locator("#server")).to_have_text("ready")
    engine.allowed = 1
    ask(page, "hello")
    row = page.locator("#models li").filter(has_text="light")
    expect(row).to_contain_text("1 running · 2 waiting")
    expect(row.get_by_label("KV cache of light")).to_have_attribute("aria-label", "KV cache of light")
    assert row.locator("meter").evaluate("(one) => one.value") == 0.25
    expect(page.get_by_role("img", name="Tokens per second in the last minute")).to_be_visible()
    engine.allowed = math.inf
    done(page)
    hide = "Object.defineProperty(document, 'visibilityState', { value: '%s', configurable: true })"
    page.evaluate(hide % "hidden")
    page.wait_for_timeout(500)
    wait_until(lambda: page.evaluate("true") and asked[-1].endswith("/metrics"))  # the end of a look under way already
    asked.clear()
    page.wait_for_timeout(5_000)
    assert asked == []
    with page.expect_request("**/metrics"):
        page.evaluate(f"{hide % 'visible'}; document.dispatchEvent(new Event('visibilitychange'))")


def test_prometheus_text(open_page: Open) -> None:
    page = open_page()
    series = ['{model="a \\"b\\" }",e="1"} 2.5', '{e="2",model="a \\"b\\" }"} 1']
    text = "".join(f"chancellor_x{one}\n" for one in series) + '# HELP x y\nother{model="a"} 1\nchancellor_y NaN\n'
    parsed = page.evaluate("async (text) => (await import('/live.js')).parsed(text)", text)
    assert parsed == {"chancellor_x": {'a "b" }': 3.5}}


def test_narrow(open_page: Open) -> None:
    page = open_page(viewport=NARROW)
    for panel in ("Settings", "Live"):
        page.get_by_role("heading", name=panel).click()
    page.get_by_text("System prompt").first.click()
    ask(page, f"Explain {'w' * 300} in one two three four five six seven, think break")
    expect(page.get_by_role("alert")).to_be_visible()
    ask(page, f"{'x' * 300} think cut")
    done(page)
    for part in ("Reasoning", "Why this model, and what it took"):
        page.get_by_text(part).last.click()
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") == width


UNREADABLE = """() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((one) => (one /= 255) <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const under = (node) => {
        for (; node; node = node.parentElement) {
            const [r, g, b, a = 1] = parts(getComputedStyle(node).backgroundColor);
            if (a === 1) return [r, g, b];
        }
    };
    const found = [];
    for (const node of document.body.querySelectorAll("*")) {
        const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim()) || "placeholder" in node;
        if (!own || !node.checkVisibility() || node.tagName === "OPTION" || node.closest(".hidden")) continue;
        const [one, other] = [light(parts(getComputedStyle(node).color).slice(0, 3)), light(under(node))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) found.push([node.className || node.tagName, node.textContent.slice(0, 30), contrast]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    ask(page, "break into three or four")
    expect(page.get_by_role("alert")).to_be_visible()
    Talker.allowed = 4
    ask(page, "Explain this in one two three four five six seven, cut")
    expect(answer(page)).to_contain_text("strong says")
    assert page.evaluate("document.getAnimations().length") == 0
    Talker.allowed = math.inf
    done(page)
    page.get_by_text("Why this model, and what it took").last.click()
    assert page.evaluate(UNREADABLE) == []


def test_all_that_can_be_used_has_a_name(open_page: Open) -> None:
    page = open_page()
    ask(page, "break into three or four")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()  # one question at a time
    ask(page, "hello")
    done(page)
    unnamed = """() => {
        const used = "input, select, textarea, button, summary, meter, [role=img], [tabindex]";
        const named = (one) => one.labels?.length || one.ariaLabel || one.textContent.trim();
        return [...document.querySelectorAll(used)].filter((one) => !named(one)).map((one) => one.outerHTML);
    }"""
    assert page.evaluate(unnamed) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))

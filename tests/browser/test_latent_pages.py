"""The pages of latents in a browser, as files: by keys and pointer, on a phone, by day and by night, offline."""

import json
import shlex
import statistics
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import fsae
from benchmarks.latent_pages import times_of
from fsae.analysis.latent_pages import PromptView, write_comparison_pages, write_latent_pages, write_prompt_page
from fsae.analysis.origin import Origin
from fsae.outputs.latent_store import LATENT_COLUMNS, LatentStore
from tests.analysis.latent_stores import HOSTILE, explain, scale, write_samples_store, write_text_store
from tests.browser.conftest import QUIET
from tests.browser.page import Page

ROWS = "[...document.querySelectorAll('#rows tbody tr[data-place]')]"
LATENTS = f"{ROWS}.map(row => Number(row.querySelector('a').textContent.replace(/[★✎ ]/g, '')))"
COUNTED = "document.querySelector('[role=status].soft').textContent"
SHOWN = "document.documentElement?.dataset.shown"

# The least contrast of a text with what is behind it, over all texts on the page (WCAG 2.2, 1.4.3).
CONTRAST = """
(() => {
  const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor));
    const over = (under, [r, g, b, a]) => [r, g, b].map((each, i) => each * a + under[i] * (1 - a));
    return layers.reduce(over, [255, 255, 255]);
  };
  const linear = each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  let least = [99, ""];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, style = getComputedStyle(element);
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    const [a, b] = [light(rgba(style.color)), light(behind(element))].sort((a, b) => b - a);
    if ((a + 0.05) / (b + 0.05) < least[0]) least = [(a + 0.05) / (b + 0.05), walk.currentNode.data.slice(0, 60)];
  }
  return least;
})()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return write_text_store(tmp_path_factory.mktemp("text") / "latents")


@pytest.fixture(scope="module")
def address(store: LatentStore) -> str:
    title = "run <b>1</b><script>document.title = 'owned'</script>"
    origin = Origin(title, {"<i>run</i>": "<b>outputs</b>"}, "outputs/runs/it's <b>1</b>")
    return write_latent_pages(store, store.folder, origin).as_uri()


@pytest.fixture
def page(program: str, tmp_path: Path) -> Iterator[Page]:
    """A tab that may only open files, and whose scripts fail nowhere."""
    with Page(program, tmp_path / "profile", *QUIET) as page:
        page.resize(1280, 1000)
        yield page
        assert page.errors == []
        assert [url for url in page.requested if not url.startswith(("file:", "data:", "blob:"))] == []


def values(page: Page, column: str) -> list[str]:
    """Return the texts of a column in the rows that are drawn."""
    heads = page.ask("[...document.querySelectorAll('#rows thead th')].map(head => head.textContent)")
    return page.ask(f"{ROWS}.map(row => row.children[{heads.index(column)}].textContent)")


def search(page: Page, text: str) -> None:
    page.ask("pages.overview.searchBox.focus(); pages.overview.searchBox.select()")
    page.type(text)
    page.wait(f"pages.selection.search === {json.dumps(text)}")


def test_the_table_lists_all_latents_and_draws_few(address: str, page: Page):
    page.open(address)
    assert page.ask(COUNTED) == "300 latents"
    drawn = page.ask(LATENTS)
    assert drawn[:3] == [0, 1, 2]
    assert len(drawn) < 80
    assert values(page, "label")[2] == "word 2 of 2"
    page.ask("document.getElementById('rows').scrollTop = 1e6")
    page.wait(f"{LATENTS}.at(-1) === 299")


def test_a_click_on_a_column_sorts_and_missing_numbers_come_last(address: str, page: Page, store: LatentStore):
    page.open(address)
    page.ask(
        "[...document.querySelectorAll('#rows thead button')].find(each => each.textContent === 'token purity').click()"
    )
    wanted = store.table.sort_values("token_purity", ascending=False, kind="stable")["latent"].tolist()
    assert page.ask("[...pages.selection.order]") == wanted
    assert store.table["class"].tolist()[wanted[-1]] == "dead"
    assert page.ask("document.querySelector('[aria-sort=descending]').textContent") == "token purity"
    page.ask("document.querySelector('[aria-sort] button').click()")
    alive = len(store.table["token_purity"].dropna())
    assert page.ask("[...pages.selection.order]")[:alive] == wanted[:alive][::-1]
    assert page.ask("location.hash") == "#sort=token_purity"


def test_the_search_finds_labels_top_tokens_numbers_and_notes(address: str, page: Page, store: LatentStore):
    page.open(address)
    search(page, "WORD 2 of 2")
    assert page.ask(LATENTS) == [2]
    search(page, "onerror=")
    (token,) = (i for i, text in enumerate(HOSTILE) if "onerror" in text)
    has = [tokens is not None and token in tokens[:5] for tokens in store.table["top_tokens"]]
    assert page.ask("[...pages.selection.order]") == np.flatnonzero(has).tolist()
    assert 1 in page.ask("[...pages.selection.order]")
    page.ask("pages.notes[0].change(17, {note: 'Polysemantic?'})")
    search(page, "polysemantic")
    assert page.ask(LATENTS) == [17]
    search(page, "nothing has this")
    assert page.ask(COUNTED) == "0 of 300 latents"


def test_any_number_filters_and_the_address_keeps_it(address: str, page: Page, store: LatentStore):
    page.open(address)
    page.ask("pages.overview.rangeName.value = 'density'; pages.overview.low.focus()")
    page.type("0.001")
    page.key("Tab")
    page.type("1e-1")
    page.key("Enter")
    wanted = store.table["latent"][store.table["density"].between(0.001, 0.1)].tolist()
    page.wait(f"pages.selection.order.length === {len(wanted)}")
    assert page.ask("[...pages.selection.order]") == wanted
    assert page.ask("document.querySelector('.chip').textContent") == "0.001 ≤ density ≤ 0.1 \u00d7"
    page.ask("document.querySelector('.classes input[value=dense]').click()")
    wanted = store.table["latent"][
        store.table["density"].between(0.001, 0.1) & (store.table["class"] == "dense")
    ].tolist()
    assert page.ask("[...pages.selection.order]") == wanted
    kept = page.ask("location.hash")
    page.open(address + kept)
    assert page.ask("[...pages.selection.order]") == wanted
    page.ask("document.querySelector('.chip').click()")
    assert page.ask("pages.selection.order.length") == (store.table["class"] == "dense").sum()


def test_a_drag_over_the_scatter_filters_by_both_numbers(address: str, page: Page, store: LatentStore):
    page.open(address)
    left, top, width, height = page.ask(
        "(({left, top, width, height}) => [left, top, width, height])("
        "pages.overview.scatter.canvas.getBoundingClientRect())"
    )
    page.drag((left + width * 0.3, top + height * 0.2), (left + width * 0.7, top + height * 0.6))
    page.wait("pages.selection.ranges.length === 2")
    (density, maximum) = page.ask("pages.selection.ranges")
    table = store.table
    inside = table["density"].between(density["low"], density["high"]) & table["max"].between(
        maximum["low"], maximum["high"]
    )
    found = page.ask("[...pages.selection.order]")
    assert 0 < len(found) < 270
    assert abs(len(found) - inside.sum()) <= 1
    assert density["low"] < density["high"]
    assert maximum["low"] < maximum["high"]


def test_an_axis_has_round_numbers_over_any_range(address: str, page: Page):
    page.open(address)
    for low, high, log, wanted in (
        (-5, -1, True, [1e-5, 1e-4, 1e-3, 1e-2, 0.1]),
        (0.6, 2.6, True, [5, 10, 20, 50, 100, 200]),
        (0.65, 1.15, True, [6, 8, 10, 12, 14]),
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ):
        assert page.ask(f"ticks({low}, {high}, {str(log).lower()})") == pytest.approx(wanted)


def test_an_address_opens_a_latent_and_keys_walk_through_the_table(address: str, page: Page, store: LatentStore):
    page.open(f"{address}#latent=5")
    assert page.ask("document.querySelector('h2').textContent").endswith("latent 5 word 5 of 5")
    page.key("j")
    page.wait(f"{SHOWN} === '6'")
    page.key("ArrowRight")
    page.wait(f"{SHOWN} === '7'")
    shown = page.ask("document.querySelector('.contexts').textContent")
    assert f"on for none of the {store.meta.positions} tokens" in shown
    assert "python -m fsae.latents 'outputs/runs/it'\\''s <b>1</b>' --tokens" in shown
    assert "break lines" not in shown
    page.key("k")
    page.wait(f"{SHOWN} === '6'")
    assert page.ask("location.hash") == "#latent=6"
    # In another order, next is the next row.
    page.key("t")
    page.wait("document.querySelector('#rows') !== null")
    page.pointer("#rows thead th:nth-child(4) button")
    assert page.ask("document.activeElement.textContent") == "density"
    order = store.table.sort_values("density", ascending=False, kind="stable")["latent"].tolist()
    page.key("ArrowDown")
    page.key("ArrowDown")
    page.key("Enter")
    page.wait(f"{SHOWN} === '{order[1]}'")
    page.key("j")
    page.wait(f"{SHOWN} === '{order[2]}'")
    assert page.ask("document.querySelector('.place').textContent") == "3 of 300"
    page.key("Escape")
    page.wait(f"document.activeElement.textContent === '{order[2]}'")


def test_a_latent_that_is_missing_is_named(address: str, page: Page):
    page.open(f"{address}#latent=300")
    assert "There is no latent 300: the latents are 0 to 299." in page.ask("document.querySelector('main').textContent")


def test_markup_in_texts_and_names_shows_as_text(address: str, page: Page):
    page.open(f"{address}#latent=1")
    assert (
        page.ask("document.querySelector('h1').textContent") == "run <b>1</b><script>document.title = 'owned'</script>"
    )
    assert (
        page.ask("document.querySelector('h2 .label').textContent")
        == '<b>bold</b> "quoted" \\u202e & label↵in two lines'
    )
    assert page.ask("document.querySelectorAll('main img, main script, main b, footer b, footer i').length") == 0
    assert page.ask("document.title").startswith("latent 1 \u2013 run <b>")
    raised = page.ask("[...document.querySelectorAll('.logits table td:first-child')].map(each => each.textContent)")
    shown = {"\n": "↵", "\t": "→\t", " ": "␣", "": "(empty)", "\u202eevil": "\\u202eevil", "\u2028": "\\u2028"}
    shown |= {"\r\n": "↵", "\x00": "\\u0000"}
    assert raised == [shown.get(text, text) for text in HOSTILE]
    assert "<b>outputs</b>" in page.ask("document.querySelector('footer').textContent")


def test_contexts_have_three_widths_and_line_breaks(address: str, page: Page, store: LatentStore):
    page.open(f"{address}#latent=4")
    hit = store.hits(4).to_dict("records")[0]
    low, high = hit["begin"], hit["begin"] + len(hit["values"])
    count = "document.querySelector('.context .text').children.length"
    assert page.ask("document.querySelectorAll('.context').length") == 44
    for reach, name in ((5, "short"), (10, "medium"), (24, "whole")):
        page.ask(
            f"[...document.querySelectorAll('.buttons button')].find(each => each.textContent === '{name}').click()"
        )
        assert page.ask(count) == min(high, hit["position"] + reach + 1) - max(low, hit["position"] - reach)
    page.key("w")
    assert page.ask("document.querySelector('.buttons [aria-pressed=true]').textContent") == "short"
    page.ask("[...document.querySelectorAll('.buttons button')][2].click()")
    text = "[...document.querySelectorAll('.context .text')].map(each => each.textContent).join('')"
    assert "↵" in page.ask(text)
    assert "↵\n" not in page.ask(text)
    page.ask("document.querySelector('.contexts input[type=checkbox]').click()")
    assert "↵\n" in page.ask(text)
    heads = page.ask("[...document.querySelectorAll('.hits h4')].map(each => each.textContent)")
    assert heads[0] == "Top contexts one hit per context"
    assert len(heads) == 13
    assert "of the maximum" in heads[-1]


def test_hover_shows_the_activation_of_each_token(address: str, page: Page, store: LatentStore):
    page.open(f"{address}#latent=4")
    hit = store.hits(4).to_dict("records")[0]
    page.pointer(".context .peak", click=False)
    shown = page.ask("document.getElementById('hover').textContent")
    token = store.tokens[hit["context"], hit["position"]]
    assert f"activation {hit['value']:.4g}" in shown
    assert f"token {token}, context {hit['context']}, position {hit['position']}" in shown
    # The same by the keyboard: the arrows move within the text that has the focus, and not to the next latent.
    page.ask("document.querySelector('.context .text').focus()")
    page.key("ArrowRight")
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    assert f"position {hit['position'] - 1}" in page.ask("document.getElementById('hover').textContent")
    before = hit["values"][hit["position"] - hit["begin"] - 1]
    assert f"activation {before:.4g}" in page.ask("document.getElementById('hover').textContent")
    assert page.ask(SHOWN) == "4"
    page.key("Tab")


def test_a_latent_has_its_lists(address: str, page: Page, store: LatentStore):
    page.open(f"{address}#latent=4")
    row = store.table.to_dict("records")[4]
    boxes = page.ask(
        "Object.fromEntries([...document.querySelectorAll('.box')].map("
        "box => [box.querySelector('h3').textContent, box.textContent]))"
    )
    assert list(boxes) == [
        "Contexts", "Activations", "Tokens at the peak", "Logit effects", "n-gram predictor", "Neighbours",
        "Active together with", "Use it",
    ]  # fmt: skip
    assert page.ask("document.querySelectorAll('.histogram .reach').length") == 12
    first = row["decoder_neighbours"][0]
    assert page.ask("document.querySelector('.linked a').getAttribute('href')") == f"#latent={first}"
    assert store.strings[row["logit_top"][0]].strip() in boxes["Logit effects"]
    page.ask("document.querySelector('.logits input').click()")
    raised = page.ask("document.querySelector('.logits table td').textContent")
    assert raised.replace("␣", " ") == store.strings[row["raw_logit_top"][0]]
    page.pointer(".linked a")
    page.wait(f"{SHOWN} === '{first}'")


def test_notes_and_stars_stay_and_move_between_browsers(address: str, page: Page, program: str, tmp_path: Path):
    page.open(f"{address}#latent=4")
    page.key("s")
    page.key("n")
    page.type('a <b>note</b>\nwith "lines"')
    page.key("Escape")
    assert page.ask("document.querySelector('.star').textContent") == "★"
    page.open(f"{address}#starred=1")
    page.wait(f"{LATENTS}.length === 1")
    assert page.ask(LATENTS) == [4]
    page.download_to(tmp_path)
    page.ask("document.getElementById('export').click()")
    file = tmp_path / "fsae-notes.json"
    for _ in range(200):
        if file.exists() and file.stat().st_size:
            break
        page.ask("new Promise(resolve => setTimeout(resolve, 20))")
    saved = json.loads(file.read_text())
    assert saved == {"weights": "0123abcd", "notes": {"4": {"star": True, "note": 'a <b>note</b>\nwith "lines"'}}}
    with Page(program, tmp_path / "another", *QUIET) as other:
        other.open(f"{address}#starred=1")
        assert other.ask(LATENTS) == []
        other.choose_file("#import", file)
        other.wait(f"{LATENTS}.length === 1")
        assert other.ask("document.getElementById('status').textContent") == "Notes imported: 1."
        other.open(f"{address}#latent=4")
        assert other.ask("document.querySelector('textarea').value") == 'a <b>note</b>\nwith "lines"'
        for content, answer in ((saved | {"weights": "x"}, "another dictionary"), ([], "no notes of these pages")):
            (tmp_path / "wrong.json").write_text(json.dumps(content))
            other.choose_file("#import", tmp_path / "wrong.json")
            other.wait(f"document.getElementById('status').textContent.includes('{answer}')")


def test_aggregates_stand_next_to_their_control(address: str, page: Page):
    page.open(address)
    rows = page.ask(
        "[...document.querySelectorAll('.aggregates tbody tr')].map("
        "row => [...row.children].map(each => each.textContent))"
    )
    assert rows[1] == ["mean token purity", "0.61", "0.12"]
    assert rows[3] == ["missing", "", ""]
    assert "256 random directions" in page.ask("document.querySelector('.aggregates').textContent")


def test_every_number_has_a_meaning_for_pointer_keys_and_touch(address: str, page: Page, store: LatentStore):
    page.open(address)
    purity = "mean share of <b>the top codes</b>"
    titles = page.ask("[...document.querySelectorAll('.aggregates tbody th')].map(each => each.title)")
    assert titles[1] == purity
    heads = page.ask("[...document.querySelectorAll('#rows thead button')].every(each => each.title)")
    assert heads
    page.key("m")
    shown = page.ask("document.querySelector('dialog[open]').textContent")
    for meaning in (purity, *(column.meaning for column in LATENT_COLUMNS.values())):
        assert meaning in shown
    assert page.ask(CONTRAST)[0] >= 4.5
    page.key("Escape")
    page.pointer("#terms")
    assert page.ask("document.querySelector('dialog[open]').id") == "glossary"
    page.open(f"{address}#latent=4")
    facts = page.ask("[...document.querySelectorAll('.facts div')].map(each => [each.textContent, each.title])")
    assert all(title for _, title in facts)
    assert [f"on for{store.table['count'].tolist()[4]} of {store.meta.positions} tokens",
            LATENT_COLUMNS["count"].meaning] in facts  # fmt: skip


def test_the_page_copies_code_and_a_link(address: str, page: Page):
    # What the clipboard gets; the page must not need it.
    page.run_first(
        "window.copied = [];"
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => window.copied.push(text)}})"
    )
    page.open(f"{address}#latent=4")
    page.key("c")
    page.wait("window.copied.length === 1")
    code = page.ask("window.copied[0]")
    loaded, edited = [], []

    class Model:
        def generate(self, prompt: str, tokens: int, seed: int) -> str:
            return prompt

    class Block:
        def __enter__(self) -> Model:
            return Model()

        def __exit__(self, *error: object) -> None: ...

    def load(path: str) -> SimpleNamespace:
        loaded.append(path)
        return SimpleNamespace(intervene=lambda *edits: edited.extend(edits) or Block())

    stand_in = SimpleNamespace(load=load, Ablate=fsae.Ablate)
    exec(code.replace("import fsae\n", ""), {"fsae": stand_in, "print": lambda text: None})
    assert (loaded, edited) == (["outputs/runs/it's <b>1</b>"], [fsae.Ablate(4)])
    assert "Copied: the code." in page.ask("document.getElementById('status').textContent")
    page.key("j")
    page.wait(f"{SHOWN} === '5'")
    page.key("l")
    page.wait("window.copied.length === 2")
    assert page.ask("window.copied[1]") == f"{address}#latent=5"
    steer = page.ask("[...document.querySelectorAll('.usage pre')].at(-1).textContent")
    assert shlex.split(steer) == ["python", "-m", "fsae.steer", "outputs/runs/it's <b>1</b>", "5", "--prompt", "The"]


def test_without_a_clipboard_the_page_copies_in_the_older_way(address: str, page: Page):
    page.run_first(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.execCommand = () => { window.copied = document.activeElement.value; return window.allowed; };"
    )
    page.open(f"{address}#latent=4")
    page.ask("window.allowed = true")
    page.pointer(".latent button[title*='(c)']")
    page.wait("document.getElementById('status').textContent === 'Copied: the code.'")
    assert page.ask("window.copied").startswith("import fsae")
    page.ask("window.allowed = false")
    page.key("c")
    page.wait("document.getElementById('status').textContent.includes('does not let the page copy')")


def test_a_script_within_the_page_does_not_run(address: str, page: Page):
    page.open(address)
    page.ask("document.body.append(Object.assign(document.createElement('script'), {text: 'window.owned = 1'}))")
    page.ask("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')")
    page.wait("true")
    assert page.ask("window.owned") is None
    # The browser reports what the page's policy refused.
    assert page.errors
    assert all("Content Security Policy" in error for error in page.errors)
    page.errors.clear()


def test_a_table_without_rows_says_why(address: str, page: Page):
    page.open(f"{address}#search=nothing has this&sort=-max")
    nothing = "document.querySelector('#rows .nothing')"
    assert "No latent fits the search and all filters." in page.ask(f"{nothing}.textContent")
    page.ask(f"{nothing}.querySelector('button').click()")
    assert page.ask(COUNTED) == "300 latents"
    assert page.ask("location.hash") == "#sort=-max"
    page.open(f"{address}#starred=1")
    assert "You have starred no latent" in page.ask(f"{nothing}.textContent")


def test_j_and_k_walk_through_the_rows(address: str, page: Page):
    page.open(address)
    for key, latent in (("j", 0), ("j", 1), ("ArrowDown", 2), ("k", 1)):
        page.key(key)
        assert page.ask("document.activeElement.textContent") == str(latent)


def test_samples_of_a_bin_come_from_the_strongest_down(address: str, page: Page):
    page.open(f"{address}#latent=4")
    groups = page.ask(
        "[...document.querySelectorAll('.hits')].map(group => [...group.querySelectorAll('.value')]"
        ".map(each => Number(each.textContent)))"
    )
    assert len(groups) == 13
    for values in groups:
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["", "#latent=1", "#latent=7"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_a_phone_and_have_contrast(where: str, scheme: str, width: int, address: str, page: Page):
    page.resize(width, 844, phone=width == 390)
    page.scheme(scheme)
    page.open(address + where)
    page.ask("document.querySelectorAll('details.top').forEach(each => { each.open = true; })")
    assert page.ask("[document.documentElement.clientWidth, document.documentElement.scrollWidth]") == [width, width]
    least, text = page.ask(CONTRAST)
    assert least >= 4.5, text
    picture = page.picture()
    assert (picture.mean() > 200) if scheme == "light" else (picture.mean() < 60)


def test_the_reader_may_choose_the_appearance(address: str, page: Page):
    page.scheme("light")
    page.open(address)
    page.pointer("#scheme")
    assert page.picture().mean() < 60
    page.open(f"{address}#latent=3")
    assert page.picture().mean() < 60


def test_digits_are_pictures_and_other_samples_curves(tmp_path: Path, page: Page):
    for picture in (True, False):
        store = write_samples_store(tmp_path / str(picture), picture)
        page.open(write_latent_pages(store, store.folder, Origin("samples")).as_uri())
        # Every latent that is on has its top sample in the table.
        assert page.ask(f"{ROWS}.slice(0, 10).map(row => row.querySelectorAll('.sample').length)") == [1] * 7 + [
            0,
            1,
            1,
        ]
        page.open(write_latent_pages(store, store.folder, Origin("samples")).as_uri() + "#latent=0")
        assert page.ask("document.querySelectorAll('.hit').length") == 12
        hits = store.hits(0).to_dict("list")
        assert page.ask("document.querySelector('.hit figcaption').textContent") == f"{hits['value'][0]:.4g}"
        if picture:
            size = page.ask("[...document.querySelectorAll('canvas.sample')].map(each => [each.height, each.width])")
            assert size == [[8, 6]] * 12
            grey = page.ask(
                "[...document.querySelector('canvas.sample').getContext('2d').getImageData(0, 0, 6, 8).data]"
                ".filter((_, i) => i % 4 === 0)"
            )
            vector = store.samples[hits["context"][0]]
            # The canvas holds a grey value per number of the sample, on one scale.
            assert np.corrcoef(grey, vector)[0, 1] > 0.99
        else:
            assert page.ask("document.querySelector('.curve polyline').getAttribute('points').split(' ').length") == 48
        assert page.ask("document.querySelector('.contexts h3').textContent") == "Samples"
        low, high = (f"{each:.3g}" for each in np.quantile(list(store.samples.values()), [0.001, 0.999]))
        scale = f"black is {low} or less, white is {high} or more" if picture else f"upwards from {low} to {high}"
        assert scale in page.ask("document.querySelector('.contexts h4').textContent")
        assert "W_dec[0]" in page.ask("pythonCode(pages.dictionaries[0], 0)")


def test_every_row_has_the_height_that_the_table_counts_on(address: str, tmp_path: Path, page: Page):
    curves = write_samples_store(tmp_path / "curves", picture=False)
    pictures = write_samples_store(tmp_path / "pictures")
    urls = [write_latent_pages(each, each.folder, Origin("samples")).as_uri() for each in (curves, pictures)]
    for url in (address, *urls):
        page.open(url)
        assert page.ask(f"{ROWS}.every(row => row.getBoundingClientRect().height === ROW)")


def test_a_crosscoder_shows_where_its_latents_write(address: str, tmp_path: Path, page: Page):
    store = write_text_store(tmp_path / "latents", d_sae=20, of_parts=["resid_mid.3", "<b>resid_mid.6</b>"])
    parts = write_latent_pages(store, store.folder, Origin("crosscoder")).as_uri()
    page.open(parts)
    assert values(page, "norm resid_mid.3")[:3] == ["0", "0.05", "0.1"]
    assert values(page, "norm <b>resid_mid.6</b>")[:3] == ["1", "0.95", "0.9"]
    heads = "[...document.querySelectorAll('#rows thead button')]"
    page.ask(f"{heads}.find(each => each.textContent === 'norm resid_mid.3').click()")
    assert page.ask(LATENTS)[:3] == [19, 18, 17]
    page.open(f"{parts}#latent=5")
    box = "[...document.querySelectorAll('.side section')].find(each => each.textContent.startsWith('Decoder row'))"
    shown = f"[...{box}.querySelectorAll('p, dd')].map(each => each.textContent)"
    assert page.ask(shown) == ["resid_mid.3", "0.25", "<b>resid_mid.6</b>", "0.75"]
    # With the run's latent scaling.
    scale(store)
    page.open(write_latent_pages(store, store.folder, Origin("crosscoder")).as_uri())
    assert values(page, "alone at")[:4] == ["resid_mid.3", "", "resid_mid.3", ""]
    assert values(page, "nu error")[:3] == ["0", "0.01", "0.02"]
    page.open(f"{parts}#latent=4")
    assert page.ask(shown) == [
        "0.04", "1.04", "resid_mid.3", "resid_mid.3", "0.2", "2.04", "4.04", "<b>resid_mid.6</b>", "0.8", "3.04", "5.04"
    ]  # fmt: skip
    assert page.ask(f"{box}.scrollWidth <= {box}.clientWidth")
    # A dictionary of one part has neither.
    page.open(address)
    assert not any("norm" in each for each in page.ask(f"{heads}.map(each => each.textContent)"))
    page.open(f"{address}#latent=5")
    assert "Decoder row" not in page.ask("document.querySelector('.side').textContent")


def test_two_dictionaries_stand_side_by_side(store: LatentStore, tmp_path: Path, page: Page):
    other = write_text_store(tmp_path / "other", d_sae=50, seed=3, weights="other")
    matched = pd.DataFrame({"first": [5, 6, 9], "second": [49, None, 8], "cosine": [0.5, np.nan, 0.75]})
    origins = Origin("A", path="outputs/runs/A"), Origin("<B>")
    address = write_comparison_pages(store, other, matched, tmp_path / "pages", origins).as_uri()
    page.open(address)
    assert page.ask(COUNTED) == "3 pairs"
    assert values(page, "latent 2") == ["49", "", "8"]
    assert values(page, "label 2")[0] == "word 49 of 10"
    page.key("ArrowDown")
    page.key("Enter")
    page.wait(f"{SHOWN} === '0'")
    assert page.ask("[...document.querySelectorAll('h2')].slice(0, 2).map(each => each.textContent)") == [
        "☆latent 5 word 5 of 5", "☆latent 49 word 49 of 10"
    ]  # fmt: skip
    boxes = page.ask("[...document.querySelectorAll('.latent')].map(each => each.getBoundingClientRect().left)")
    assert boxes[1] > boxes[0] + 500
    assert "cosine of the decoder rows 0.5" in page.ask("document.querySelector('main').textContent")
    page.key("j")
    page.wait(f"{SHOWN} === '1'")
    assert "has no match" in page.ask("document.querySelector('main').textContent")
    # A neighbour that is in no pair opens alone.
    page.open(f"{address}#second=3")
    assert page.ask("document.querySelector('h2').textContent") == "☆latent 3 word 3 of 3"
    page.resize(390, 844, phone=True)
    assert page.ask("document.documentElement.scrollWidth") == 390


def test_a_prompt_shows_activations_and_losses(store: LatentStore, address: str, page: Page):
    prompt = PromptView(
        ["<bos>", "The", " <b>cat</b>", "\n"],
        [[], [(3, 1.5, 0.25), (5, -2.0, None)], [(3, 3.0, -0.125)], []],
        [2.0, 3.0, 1.0, None],
        {3: "word <3>"},
        {3: 6.0},
    )
    page.open(write_prompt_page(store.folder, prompt, Origin("run <b>1</b>", {"run": "typed <i>"}), store).as_uri())
    assert page.ask("document.querySelector('.prompt').textContent") == "<bos>The <b>cat</b>↵\n"
    rows = (
        "[...document.querySelector('.box').querySelectorAll('tbody tr')].map("
        "row => [...row.children].map(each => each.textContent.trim()))"
    )
    assert page.ask(rows) == [["3 word <3>", "25 %", "1.5", "+0.25"], ["5", "", "-2", ""]]
    page.pointer(".prompt span:nth-child(3)")
    assert page.ask(rows) == [["3 word <3>", "50 %", "3", "-0.125"]]
    page.key("ArrowRight")
    assert "training left this position out" in page.ask("document.querySelector('.box').textContent")
    page.key("ArrowLeft")
    every = "[...document.querySelectorAll('.box')[1].querySelectorAll('tbody tr')].map(row => row.textContent.trim())"
    assert page.ask(every) == ["3 word <3>50 %3+0.252", "5 -21"]
    page.pointer("button[aria-pressed]")
    page.pointer(".prompt span:nth-child(2)", click=False)
    hover = page.ask("document.getElementById('hover').textContent")
    assert "latent 3: activation 1.5" in hover
    assert "25 % of its largest" in hover
    assert "loss if ablated: +0.25" in hover
    assert page.ask(
        "[...document.querySelectorAll('.prompt span')].map(each => each.style.getPropertyValue('--a'))"
    ) == ["", "31%", "54%", ""]
    footer = page.ask("document.querySelector('footer').textContent")
    for fact in ("typed <i>", "tiny/model", "a <i>data</i> set, held out part", "50800 tokens"):
        assert fact in footer
    for width, scheme in ((390, "dark"), (1280, "light")):
        page.resize(width, 844, phone=width == 390)
        page.scheme(scheme)
        assert page.ask("document.documentElement.scrollWidth") == width
        assert page.ask(CONTRAST)[0] >= 4.5
    page.pointer(".linked a")
    page.wait(f"{SHOWN} === '3'")


def test_a_prompt_is_coloured_by_the_change_of_the_loss_until_a_latent_is_chosen(tmp_path: Path, page: Page):
    found = [[(3, 9.0, 0.5), (5, 1.0, -0.25)], [(5, 2.0, -2.0)], []]
    page.open(write_prompt_page(tmp_path, PromptView(["a", "b", "c"], found, [1.0, 1.0, None]), Origin("run")).as_uri())
    spans = "[...document.querySelectorAll('.prompt span')].map(each => "
    assert page.ask(f"{spans}[each.className.split(' ')[0], each.style.getPropertyValue('--a')])") == [
        ["on", "54%"], ["on", "100%"], ["", ""]
    ]  # fmt: skip
    assert page.ask(f"{spans}each.classList.contains('below'))") == [False, True, False]
    assert "from 1 nat" in page.ask("document.querySelector('main').textContent")


def test_explanations_are_in_the_table_and_on_the_page_of_the_latent(tmp_path: Path, page: Page):
    store = write_text_store(tmp_path / "latents", d_sae=20)
    explain(store, 3, 5)
    address = write_latent_pages(store, store.folder, Origin("run")).as_uri()
    page.open(f"{address}#sort=-detection")
    assert values(page, "explanation")[:3] == ["on at <b>3</b>", "on at <b>5</b>", ""]
    assert values(page, "detection")[:3] == ["0.75", "0.75", ""]
    page.open(f"{address}#latent=5")
    shown = page.ask("document.querySelector('.explanation').textContent")
    assert shown == "on at <b>5</b>detection0.75explained by<i>judge</i>"
    assert page.ask("document.querySelector('.usage')") is None


def test_a_static_host_serves_the_same_pages(store: LatentStore, address: str, program: str, tmp_path: Path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(store.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with Page(program, tmp_path / "profile", *QUIET) as page:
            page.open(f"http://127.0.0.1:{server.server_port}/index.html#latent=4")
            assert page.ask("document.querySelectorAll('.context').length") == 44
            assert page.errors == []
        server.shutdown()


def test_the_table_and_the_next_latent_appear_in_time(program: str, tmp_path: Path):
    """`python -m benchmarks.latent_pages` measures 16,384 and 131,072 latents."""
    latents = 4096
    store = write_text_store(tmp_path / "latents", latents, contexts=8000, vocabulary=20_000)
    url = write_latent_pages(store, store.folder, Origin("run")).as_uri()
    times = times_of(url, latents, 9, tmp_path, program)
    assert statistics.median(times["first table"]) < 2000
    assert statistics.median(times["next"]) < 100


def test_missing_data_are_named(store: LatentStore, tmp_path: Path, program: str):
    written = write_latent_pages(store, tmp_path / "pages", Origin("run"))
    (folder,) = written.parent.glob("pages-*")
    (folder / "first-shard-0001.js").unlink()
    with Page(program, tmp_path / "profile", *QUIET) as page:
        page.open(f"{written.as_uri()}#latent=0")
        page.ask("location.hash = '#latent=130'")
        page.wait("document.querySelector('.worse') !== null")
        assert "first-shard-0001.js is missing" in page.ask("document.querySelector('.worse').textContent")
        page.ask("location.hash = '#latent=1'")
        page.wait(f"{SHOWN} === '1'")


def test_a_store_without_a_control_reports_that(tmp_path: Path, page: Page):
    store = write_text_store(tmp_path / "latents", d_sae=20)
    path = store.folder / "meta.json"
    meta = json.loads(path.read_text()) | {"control": {}, "control_latents": 0}
    path.write_text(json.dumps(meta))
    store = LatentStore(store.folder)
    page.open(write_latent_pages(store, store.folder, Origin("run")).as_uri())
    shown = page.ask("document.querySelector('.aggregates').textContent")
    assert "There is no control" in shown
    assert page.ask("document.querySelectorAll('.aggregates thead th').length") == 2


def test_the_table_shows_top_tokens_and_stars(address: str, page: Page, store: LatentStore):
    page.open(address)
    tokens = [store.strings[token].replace(" ", "␣") for token in store.table["top_tokens"].tolist()[3][:5]]
    assert values(page, "top tokens")[3] == "".join(f"{token} " for token in tokens)
    page.ask("pages.notes[0].change(3, {star: true, note: 'x'}); pages.overview.fill()")
    assert page.ask(f"{ROWS}[3].querySelector('a').textContent") == "★ ✎ 3"
    page.pointer("#rows thead th:nth-child(3) button")
    joined = page.ask("[...pages.selection.order].map(row => pages.selection.byName.get('top_tokens').values[row])")
    assert joined[:270] == sorted(joined[:270], key=lambda text: text.encode("utf-16-be"))
    assert joined[270:] == [""] * 30

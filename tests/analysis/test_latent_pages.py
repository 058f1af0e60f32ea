import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fsae
from fsae.analysis.latent_pages import (
    PageSizes,
    PromptView,
    write_comparison_pages,
    write_latent_pages,
    write_prompt_page,
)
from fsae.analysis.origin import Origin
from fsae.outputs.latent_store import LATENT_COLUMNS, SAMPLED, TOP, LatentStore
from tests.analysis.latent_stores import HOSTILE, LABEL, explain, scale, write_samples_store, write_text_store
from tests.analysis.test_packed_arrays import from_few_bytes, unpack

TITLE = "run <b>1</b> & more"
ORIGIN = Origin(TITLE, {"run": "outputs/<i>2026</i>", "seed": "0"}, "outputs/runs/1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LatentStore:
    return write_text_store(tmp_path_factory.mktemp("text") / "latents")


@pytest.fixture(scope="module")
def page(store: LatentStore) -> Path:
    return write_latent_pages(store, store.folder, ORIGIN)


def data_of(page: Path) -> Path:
    (folder,) = page.parent.glob("pages-*/")
    return folder


def script(page: Path, name: str) -> dict[str, Any]:
    found = re.fullmatch(r'fsaeLatents\("(.*)","(.*)"\)\n', (data_of(page) / f"{name}.js").read_text())
    assert found
    assert found[1] == name
    return unpack(found[2])


def test_the_pages_stand_next_to_the_store(page: Path, store: LatentStore):
    assert page == store.folder / "index.html"
    assert len(store.table) == 300
    assert {path.name for path in data_of(page).iterdir()} == {
        "first-index.js", "first-tokens.js", *(f"first-shard-{i:04d}.js" for i in range(3))
    }  # fmt: skip


def test_the_table_has_every_number_and_text_of_every_latent(page: Path, store: LatentStore):
    index = script(page, "first-index")
    scalars = [name for name, column in LATENT_COLUMNS.items() if not str(column.type).startswith("list")]
    assert list(index) == [*scalars, "top_tokens", "top_tokens.lengths"]
    for name in scalars:
        if isinstance(index[name], list):
            assert index[name] == store.table[name].fillna("").to_list()
        else:
            np.testing.assert_array_equal(index[name], store.table[name].astype(index[name].dtype))
    assert index["label"][1] == LABEL
    assert index["label"][7] == ""


@pytest.mark.parametrize("latent", [0, 1, 7, 128, 255, 299])
def test_a_shard_has_the_windows_of_its_latents(latent: int, page: Path, store: LatentStore):
    sizes = PageSizes()
    shard = script(page, f"first-shard-{latent // sizes.latents_per_shard:04d}")
    own = latent % sizes.latents_per_shard
    count = (shard["tops"] + shard["samples"].astype(int)).tolist()
    begin = sum(count[:own])
    hits = store.hits(latent)
    top = hits.loc[(hits["group"] == TOP) & (hits["rank"] < sizes.top)]
    # 24 samples of 12 bins.
    sampled = hits.loc[(hits["group"] == SAMPLED) & (hits["rank"] < 2)]
    wanted = pd.concat([top.sort_values("rank"), sampled.sort_values(["bin", "rank"], ascending=[False, True])])
    assert count[own] == len(wanted) == (0 if latent == 7 else 44)
    runs = np.cumsum(shard["run_first"]), np.cumsum(shard["run_context"]), shard["run_position"].astype(int)
    ids, text = script(page, "first-tokens")["ids"], from_few_bytes(shard["tokens"])
    codes_begin = np.r_[0, np.cumsum(shard["codes"])]
    for i, hit in zip(range(begin, begin + count[own]), wanted.to_dict("records"), strict=True):
        reach = sizes.top_window if hit["group"] == TOP else sizes.sample_window
        low = max(hit["begin"], hit["position"] - reach)
        high = min(hit["begin"] + len(hit["values"]), hit["position"] + reach + 1)
        first, length = int(shard["first"][i]), int(shard["length"][i])
        assert (length, shard["peak"][i]) == (high - low, hit["position"] - low)
        tokens = ids[text[first : first + length]]
        assert tokens.tolist() == store.tokens[hit["context"], low:high].tolist()
        run = int(np.searchsorted(runs[0], first, side="right")) - 1
        assert (runs[1][run], runs[2][run] + first - runs[0][run]) == (hit["context"], low)
        codes = np.zeros(length)
        part = slice(codes_begin[i], codes_begin[i + 1])
        codes[shard["code_place"][part]] = shard["code"][part]
        codes[shard["peak"][i]] = shard["value"][i]
        np.testing.assert_array_equal(codes, hit["values"][low - hit["begin"] : high - hit["begin"]])
        assert (shard["value"][i], shard["bin"][i]) == (np.float32(hit["value"]), hit["bin"])


def test_the_hits_of_a_range_are_those_of_its_latents(store: LatentStore):
    wanted = pd.concat([store.hits(latent) for latent in range(5, 9)], ignore_index=True)
    pd.testing.assert_frame_equal(store.hits_between(5, 9), wanted)
    assert len(store.hits_between(299, 400)) == len(store.hits(299))


def test_lists_are_cut_to_their_length_and_null_is_empty(store: LatentStore, tmp_path: Path):
    page = write_latent_pages(store, tmp_path / "pages", Origin(TITLE), PageSizes(listed=4, latents_per_shard=300))
    shard = script(page, "first-shard-0000")
    assert set(shard["cofiring.lengths"].tolist()) == {0, 4}
    assert shard["cofiring.lengths"][7] == 0
    assert shard["cofiring"][:4].tolist() == store.table["cofiring"][0][:4].tolist()
    # Neither the histogram nor the trigger means anything without its end.
    assert shard["histogram.lengths"].tolist() == [96] * 300
    assert shard["trigger.lengths"][:3].tolist() == [3, 0, 0]


def test_the_table_has_the_relative_norm_of_each_part(tmp_path: Path):
    store = write_text_store(tmp_path / "latents", d_sae=20, of_parts=["resid_mid.3", "<b>resid_mid.6</b>"])
    page = write_latent_pages(store, store.folder, ORIGIN)
    index = script(page, "first-index")
    assert index["relative_norm_0"][:3].tolist() == pytest.approx([0, 0.05, 0.1])
    assert index["relative_norm_1"][:3].tolist() == pytest.approx([1, 0.95, 0.9])
    assert "relative_norm_2" not in index
    assert "relative_norms" not in script(page, "first-shard-0000")
    assert "<b>resid" not in page.read_text()


def test_the_table_has_the_latent_scaling_of_its_run(tmp_path: Path):
    parts = ["resid_mid.3", "<b>resid_mid.6</b>"]
    store = write_text_store(tmp_path / "latents", d_sae=20, of_parts=parts)
    before = data_of(write_latent_pages(store, store.folder, ORIGIN))
    scale(store)
    page = write_latent_pages(store, store.folder, ORIGIN)
    assert data_of(page) != before
    index = script(page, "first-index")
    assert index["alone_at"][:4] == ["resid_mid.3", "", "resid_mid.3", ""]
    assert index["nu_error"][:3].tolist() == pytest.approx([0, 0.01, 0.02])
    assert index["nu_reconstruction"][:3].tolist() == pytest.approx([1, 1.01, 1.02])
    assert index["beta_error_1"][:3].tolist() == pytest.approx([3, 3.01, 3.02])
    assert index["beta_reconstruction_0"][:3].tolist() == pytest.approx([4, 4.01, 4.02])
    assert np.isnan(index["nu_error"][3])
    assert "latent scaling" in page.read_text()
    # A table of another dictionary says nothing about this one.
    other = write_text_store(tmp_path / "latents", d_sae=30, of_parts=parts)
    assert "nu_error" not in script(write_latent_pages(other, other.folder, ORIGIN), "first-index")


def test_a_store_of_an_earlier_version_has_pages_without_parts(tmp_path: Path):
    store = write_text_store(tmp_path / "latents", d_sae=20)
    path = store.folder / "latents.parquet"
    pd.read_parquet(path).drop(columns="relative_norms").to_parquet(path)
    meta = json.loads((store.folder / "meta.json").read_text())
    del meta["parts"]
    (store.folder / "meta.json").write_text(json.dumps(meta))
    index = script(write_latent_pages(LatentStore(store.folder), store.folder, ORIGIN), "first-index")
    assert not any(name.startswith("relative_norm") for name in index)


def test_every_text_is_shown_as_text(page: Path):
    text = page.read_text()
    assert "<b>1" not in text
    assert "run &lt;b&gt;1&lt;/b&gt; &amp; more" in text
    assert "outputs/&lt;i&gt;2026&lt;/i&gt;" in text
    assert "a &lt;i&gt;data&lt;/i&gt; set" in text
    tokens = script(page, "first-tokens")
    assert {text for text, i in zip(tokens["texts"], tokens["ids"], strict=True) if i < len(HOSTILE)} == set(HOSTILE)
    # Data scripts have nothing but letters of base64.
    for file in data_of(page).iterdir():
        assert re.fullmatch(r'fsaeLatents\("[a-z0-9-]+","[A-Za-z0-9+/=]+"\)\n', file.read_text())


def test_no_file_names_another_place(page: Path):
    for file in page.parent.rglob("*"):
        if file.suffix in (".html", ".js"):
            assert not re.search(r"\bhttps?:|\b(src|href)=[\"']?//|@import|= import\(|\bfetch\(", file.read_text()), (
                file
            )


def test_the_provenance_is_on_the_page(page: Path):
    text = page.read_text()
    for fact in (
        "tiny/model",
        "resid_post.3",
        "held out",
        "400 contexts of 128 tokens",
        "400 first position, 3 massive",
    ):
        assert fact in text
    assert "0123abcd" in text
    assert "raw units of the activations" in text


def test_a_latent_takes_at_most_four_kilobytes(tmp_path: Path):
    """Ten million tokens of 50,000 kinds, with the entropy of English: almost no text is shared between windows."""
    latents = 1024
    store = write_text_store(tmp_path / "latents", d_sae=latents, contexts=80_000, vocabulary=50_000)
    data = data_of(write_latent_pages(store, store.folder, ORIGIN))
    sizes = {file.name: file.stat().st_size for file in data.iterdir()}
    # The texts of the tokens are the same for any number of latents.
    tokens = sizes.pop("first-tokens.js")
    assert sum(sizes.values()) / latents + tokens / 16_384 < 4000


def test_pages_are_replaced_and_the_store_stays(store: LatentStore, tmp_path: Path):
    folder = tmp_path / "pages"
    page = write_latent_pages(store, folder, Origin("one"), PageSizes(top=3))
    earlier = data_of(page)
    for name in ("meta.json", "pages-of-mine"):
        (folder / name).write_text("{}")
    write_latent_pages(store, folder, Origin("two"), PageSizes(top=4))
    assert data_of(page) != earlier
    assert "<title>two" in page.read_text()
    assert {path.name for path in folder.iterdir()} == {"index.html", data_of(page).name, "meta.json", "pages-of-mine"}
    # The same pages again give the same files.
    before = {file.name: file.read_bytes() for file in data_of(page).iterdir()}
    write_latent_pages(store, folder, Origin("two"), PageSizes(top=4))
    assert {file.name: file.read_bytes() for file in data_of(page).iterdir()} == before


def test_earlier_pages_outlive_a_failure(tmp_path: Path):
    store = write_text_store(tmp_path / "latents", d_sae=20)
    page = write_latent_pages(store, store.folder, Origin("one"))
    files = {file: file.read_bytes() for file in page.parent.rglob("*.[hj]*")}
    (store.folder / "hits.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="damaged"):
        write_latent_pages(LatentStore(store.folder), store.folder, Origin("two"))
    assert {file: file.read_bytes() for file in page.parent.rglob("*.[hj]*")} == files


def test_samples_are_kept_in_255_steps(tmp_path: Path):
    store = write_samples_store(tmp_path / "latents")
    page = write_latent_pages(store, store.folder, Origin("digits"), PageSizes(latents_per_shard=40))
    shard = script(page, "first-shard-0000")
    assert shard["tops"].tolist() == [0 if i % 10 == 7 else 6 for i in range(40)]
    hits = store.hits(0)
    ids = shard["sample_ids"][shard["sample"][: len(hits)]]
    assert sorted(ids.tolist()) == sorted(hits["context"])
    low, high = shard["low"], shard["high"]
    for number, sample in enumerate(shard["sample_ids"].tolist()):
        steps = shard["steps"].reshape(len(low), -1)[number].astype(float)
        found = low[number] + steps / 255 * (high[number] - low[number])
        np.testing.assert_allclose(found, store.samples[sample], atol=(high[number] - low[number]) / 500)


def test_the_table_has_the_top_sample_of_every_latent(tmp_path: Path):
    store = write_samples_store(tmp_path / "latents")
    index = script(write_latent_pages(store, store.folder, Origin("digits")), "first-index")
    steps = index["steps"].reshape(40, 48).astype(float) / 255
    found = index["low"][:, None] + steps * (index["high"] - index["low"])[:, None]
    for latent in range(40):
        hits = store.hits(latent)
        if latent % 10 == 7:
            assert np.isnan(found[latent]).all()
        else:
            np.testing.assert_allclose(found[latent], store.samples[hits["context"].tolist()[0]], atol=0.02)
    assert index["scale"][0] < index["scale"][1]


def test_a_comparison_has_both_dictionaries_and_their_pairs(store: LatentStore, tmp_path: Path):
    other = write_text_store(tmp_path / "other", d_sae=20, weights="other")
    matched = pd.DataFrame({"first": [5, 6], "second": [19, None], "cosine": [0.5, np.nan]})
    page = write_comparison_pages(store, other, matched, tmp_path / "pages", (Origin("A"), Origin("<B>")))
    pairs = script(page, "pairs")
    assert (pairs["first"].tolist(), pairs["second"].tolist()) == ([5, 6], [19, -1])
    np.testing.assert_array_equal(pairs["cosine"], [np.float32(0.5), np.nan])
    assert len(script(page, "second-index")["latent"]) == 20
    assert "A and &lt;B&gt;" in page.read_text()


def test_explanations_and_their_scores_are_columns(tmp_path: Path):
    store = write_text_store(tmp_path / "latents", d_sae=20)
    # Explanations of other weights are none of this dictionary.
    explain(store, 3, weights="others")
    page = write_latent_pages(store, store.folder, ORIGIN)
    assert "explanation" not in script(page, "first-index")
    explain(store, 3, 5)
    earlier = data_of(page)
    page = write_latent_pages(store, store.folder, ORIGIN)
    assert data_of(page) != earlier
    index = script(page, "first-index")
    assert [index["explanation"][latent] for latent in (3, 4, 5)] == ["on at <b>3</b>", "", "on at <b>5</b>"]
    assert index["explained_by"][5] == "<i>judge</i>"
    np.testing.assert_array_equal(index["detection"][3:6], [0.75, np.nan, 0.75])
    assert np.isnan(index["fuzzing"]).all()
    assert "with or without the latent on" in page.read_text()


def test_the_policy_permits_the_page_s_own_script_and_no_other(page: Path, store: LatentStore, tmp_path: Path):
    prompt = write_prompt_page(tmp_path, PromptView(["a"], [[]]), ORIGIN, store)
    for file in (page, prompt):
        text = file.read_text()
        own = text.rpartition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        assert policy
        scripts = re.search(r"script-src ([^;]*)", policy[1])
        assert scripts
        assert scripts[1].split()[-1] == f"'sha256-{digest}'"
        assert "unsafe" not in scripts[1]
        assert "default-src 'none'" in policy[1]


def test_no_script_makes_elements_of_text():
    for file in (Path(fsae.__file__).parent / "analysis" / "latent_view").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.read_text()), file


def test_a_pair_of_a_latent_that_is_missing_is_refused(store: LatentStore, tmp_path: Path):
    other = write_text_store(tmp_path / "other", d_sae=20)
    matched = pd.DataFrame({"first": [0], "second": [20], "cosine": [0.5]})
    with pytest.raises(ValueError, match="latent 20, and the dictionary has the latents 0 to 19"):
        write_comparison_pages(store, other, matched, tmp_path / "pages", (Origin("A"), Origin("B")))


def test_a_prompt_page_escapes_its_texts(tmp_path: Path):
    prompt = PromptView(["a", "</script><b>"], [[(3, 0.5, None)], [(3, 1.5, -0.25)]], [1.0, None], {3: "<i>label</i>"})
    page = write_prompt_page(tmp_path / "new", prompt, ORIGIN)
    text = page.read_text()
    assert page == tmp_path / "new" / "prompt.html"
    assert text.count("</script>") == text.count("<script") == 2
    for markup in ("<b>", "<i>"):
        assert markup not in text
    assert r'"latents": [[[3, 0.5, null]], [[3, 1.5, -0.25]]]' in text

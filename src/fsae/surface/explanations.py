"""Explanations of a run's latents by a language model behind an HTTP endpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fsae.latents.context_codes import context_codes
from fsae.latents.endpoint import Endpoint, RequestSettings
from fsae.latents.excerpts import ExcerptSizes
from fsae.latents.explanations import Codes, Cost, Explained, Explainer
from fsae.latents.prompts import Prompts
from fsae.surface.dictionary import Dictionary, load

_SIZES, _REQUESTS = ExcerptSizes(), RequestSettings()


def explain(
    run: str | Path,
    url: str,
    model: str,
    *,
    member: int | None = None,
    latents: int | Sequence[int] = 100,
    prompts: str | Path | None = None,
    shown: int = _SIZES.shown,
    scored: int = _SIZES.scored,
    width: int = _SIZES.width,
    seed: int = _SIZES.seed,
    per_request: int = _REQUESTS.per_request,
    answer_tokens: int = _REQUESTS.answer_tokens,
    at_once: int = _REQUESTS.at_once,
    timeout: float = _REQUESTS.timeout,
    dry_run: bool = False,
    write: Callable[[str], None] = print,
) -> Explained | Cost:
    """Explain latents of a run by a language model, and score the explanations next to a control.

    The cost is written before the first request. Answers and explanations are kept next to the run's latent store
    (`fsae.outputs.explanations` has the files); the same call continues after a failure, and pays for no answer twice.

    Args:
        run: folder of a finished run on a language model, with a latent store (`python -m fsae.latents RUN`).
        url: of an endpoint that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1. Its key is read from
            $FSAE_EXPLAIN_KEY, and for api.openai.com also from $OPENAI_API_KEY.
        model: the model's name at the endpoint.
        member: which member of a population's run, counted from 0; None for a run that trained one dictionary.
        latents: indices, or the size of a random sample of the latents that are alive.
        prompts: a template in place of `fsae/latents/prompts.jinja`.
        shown: excerpts from which a latent is explained.
        scored: positives of each test, and as many negatives.
        width: tokens per excerpt.
        seed: of all random choices.
        per_request: examples that are judged in one request.
        answer_tokens: the most tokens of an answer; a model that thinks before it answers needs more.
        at_once: requests at the same time.
        timeout: seconds for one answer.
        dry_run: write the cost and ask nothing.
        write: receives the lines of the cost and of the result.

    Returns:
        The explanations and their means; the cost alone if `dry_run`.

    Raises:
        ValueError: bad input, such as no latent store, no such latent, or a template that does not work; or the
            endpoint fails or gives answers that cannot be read (`EndpointError`).
        OSError: the disk is full or the run's folder is not writable.
    """
    if isinstance(latents, int) and latents < 1:
        raise ValueError(f"latents is {latents}; it must be at least 1")
    sizes = ExcerptSizes(shown=shown, scored=scored, width=width, seed=seed)
    requests = RequestSettings(per_request=per_request, answer_tokens=answer_tokens, at_once=at_once, timeout=timeout)
    dictionary = load(run, member=member)
    store = dictionary.latent_store
    template = Prompts(None if prompts is None else Path(prompts).expanduser())
    endpoint = Endpoint(url, model, timeout=requests.timeout)
    try:
        explainer = Explainer(store, endpoint, template, sizes, requests)
        chosen = explainer.chosen(latents)
        cost = explainer.cost(chosen)
        write(str(cost))
        if dry_run:
            return cost
        explained = explainer.explain(chosen, lambda: _codes(dictionary))
        write(str(explained))
        return explained
    finally:
        endpoint.close()


def _codes(dictionary: Dictionary) -> Codes:
    """Return the function that computes a latent's codes in contexts of the store.

    Raises:
        ValueError: the language model cannot be opened.
    """
    model, sites = dictionary.language_model, dictionary.sites
    # The store has text, so a language model has read it.
    assert model is not None
    assert sites is not None
    return context_codes(model.model_at, sites.input, dictionary.autoencoder, dictionary.latent_store.tokens)

"""Write README's table of results from the results files.

    python -m jobs.tables

The table lies between two marker comments; a test fails when it is not what the files say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: python -m jobs.tables -->", "<!-- end of results -->"
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("bench/search", "saturation", "search keeps the engine busy: tokens/s over one flat batch's", "{:.2f}"),
    ("bench/search", "prefix_hit_rate", "prompt tokens of the search that came from the prefix cache", "{:.1%}"),
    ("bench/search", "speedup_vs_serial", "many trees at once over one tree at a time", "{:.1f}x"),
    (
        "bench/search",
        "scheduler_efficiency_32",
        "32 explorer actors, simulated engine: requests/s over 32 times one actor's",
        "{:.0%}",
    ),
    (
        "bench/scheduler",
        "slowdown_100k_vs_1k",
        "an expansion of a tree of 100,000 nodes over one of 1,000 nodes",
        "{:.2f}x",
    ),
    ("bench/scheduler", "bytes_per_node", "memory of a tree, bytes a node", "{:,.0f}"),
    ("bench/strategies", "coverage_mcts", "problems with a right response at equal tokens: MCTS", "{:.1%}"),
    ("bench/strategies", "coverage_beam", "the same by beam search", "{:.1%}"),
    ("bench/strategies", "coverage_best_of_n", "the same by independent sampling", "{:.1%}"),
    (
        "bench/strategies",
        "both_mcts_minus_best_of_n",
        "problems with right and wrong responses: MCTS minus independent sampling",
        "{:+.1%}",
    ),
    ("bench/strategies", "tokens_per_verified_chain_mcts", "search tokens for each verified chain: MCTS", "{:,.0f}"),
    ("bench/strategies", "tokens_per_verified_chain_beam", "the same by beam search", "{:,.0f}"),
    ("bench/strategies", "tokens_per_verified_chain_best_of_n", "the same by independent sampling", "{:,.0f}"),
    ("bench/filters", "seconds_per_100k", "seconds to filter 100,000 chains in one process", "{:.0f}"),
    ("bench/train", "sft_vs_trl", "SFT tokens/s over TRL's SFTTrainer", "{:.2f}"),
    ("bench/train", "sft_vs_bare_loop", "SFT tokens/s over a bare PyTorch loop", "{:.2f}"),
    ("bench/train", "packed_vs_padded", "the same with packing over without", "{:.2f}"),
    ("bench/train", "epi_step_overhead", "time that isolation adds to a step between two masks", "{:+.1%}"),
    ("bench/train", "epi_amortised_overhead_k50", "the same with a new mask every 50 steps", "{:+.1%}"),
    ("bench/train", "refresh_in_steps", "time of a new mask for 135M parameters, in steps", "{:.2f}"),
    ("bench/train", "epi_bytes_per_parameter", "memory of isolation, bytes a parameter", "{:.3f}"),
    ("bench/softlabels", "keyword_vs_loop", "keyword scores over a plain double loop's, 100,000 texts", "{:.0f}x"),
    ("bench/softlabels", "seconds", "seconds for 100,000 texts and 100 labels, leave-one-out", "{:.1f}"),
    ("bench/resume", "kills", "SIGKILLs of driver, explorer and trainer at random moments", "{}"),
    ("bench/resume", "identical", "of them: artefacts byte-identical to the undisturbed run's", "{}"),
    ("bench/resume", "max_repeated_units", "most units of work that a kill repeated", "{}"),
    ("studies/quickstart", "accuracy_before_in_domain", "quickstart, unseen sums: accuracy before", "{:.1%}"),
    ("studies/quickstart", "accuracy_prompted_in_domain", "before, with the search's worked examples", "{:.1%}"),
    ("studies/quickstart", "accuracy_after_in_domain", "after one loop", "{:.1%}"),
    ("studies/quickstart", "gain_out_of_domain", "gain out of domain (longer sums, subtraction)", "{:+.1%}"),
    (
        "studies/crps",
        "multiplier",
        "micro: rejection-sampled chains worth one by contrast (at 64, at most 4)",
        "{:.1f}",
    ),
    ("studies/crps", "ood_multiplier", "the same out of domain", "{:.1f}"),
    ("studies/crps", "multiplier_equal_tokens", "the same for a quarter of the search's tokens", "{:.1f}"),
    ("studies/crps", "crps_minus_rejection", "points by contrast minus by rejection sampling, equal chains", "{:+.1%}"),
    ("studies/crps", "crps_minus_fewest_steps", "anchors by form minus the shortest right paths", "{:+.1%}"),
    ("studies/crps", "crps_minus_form_without_search", "tree search minus independent samples, by form", "{:+.1%}"),
    ("studies/crps", "check_minus_crps", "telling the pitfall as a check minus not telling it", "{:+.1%}"),
    ("studies/crps", "crps_minus_shuffled_critique", "the problem's own critique minus another's", "{:+.1%}"),
    ("studies/crps", "keep_minus_crps", "some right responses kept as they are beside the chains", "{:+.1%}"),
    ("studies/crps_real", "crps_minus_rejection", "SmolLM2-135M, three seeds: contrast minus rejection", "{:+.1%}"),
    ("studies/crps_real", "crps_minus_best_path", "the same: contrast minus the tree's best path", "{:+.1%}"),
    ("studies/word_problems", "accuracy_before_in_domain", "MAWPS one-step problems: accuracy before", "{:.1%}"),
    ("studies/word_problems", "accuracy_prompted_in_domain", "before, with the search's worked examples", "{:.1%}"),
    ("studies/word_problems", "accuracy_after_in_domain", "after one loop", "{:.1%}"),
    ("studies/word_problems", "gain_out_of_domain", "gain on SVAMP and GSM8K", "{:+.1%}"),
    ("studies/ilp", "prevalence", "planted causes: share of samples that are unlearned", "{:.1%}"),
    ("studies/ilp", "macro_f1", "macro-F1 of the five causes of unlearned samples", "{:.2f}"),
    ("studies/ilp", "best_baseline_macro_f1", "the same by the best of four baselines", "{:.2f}"),
    ("studies/ilp", "false_alarm_rate", "clean samples called unlearned", "{:.1%}"),
    ("studies/ilp", "diagonal_wins", "causes that their own repair mends best, of five", "{:.0f}"),
    ("bench/diagnose", "full_vs_epoch", "a full diagnosis over one epoch of its training", "{:.2f}"),
    ("bench/diagnose", "screen_vs_epoch", "a screen of a tenth of the samples over the same", "{:.2f}"),
)
"""Results file, figure, words, format."""


def table() -> str:
    """The table of every result that is there, in Markdown."""
    lines = ["| what | result | 95% interval | file |", "|---|---|---|---|"]
    for name, key, words, form in ROWS:
        path = ROOT / "jobs" / name.replace("/", "/results/", 1)
        record = _record(path.with_suffix(".json"))
        if record is None or key not in record["figures"]:
            continue
        bounds = record["intervals"].get(key)
        interval = " to ".join(form.format(bound) for bound in bounds) if bounds else ""
        link = f"[{path.name}]({path.relative_to(ROOT).with_suffix('.json')})"
        lines.append(f"| {words} | {form.format(record['figures'][key])} | {interval} | {link} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """`text` with the present table between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN if not begin else END}")
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def _record(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(rewritten(readme.read_text()))

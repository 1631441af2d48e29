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
    ("bench/search_vllm", "prefix_hit_rate", "the same on vLLM", "{:.1%}"),
    ("bench/search_vllm", "saturation", "on vLLM, 16 trees only: tokens/s over one flat batch's", "{:.2f}"),
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
    ("bench/isolation", "epi_step_overhead", "time that isolation adds to a step between two masks", "{:+.1%}"),
    ("bench/isolation", "epi_amortised_overhead_k50", "the same with a new mask every 50 steps", "{:+.1%}"),
    ("bench/isolation", "refresh_in_steps", "time of a new mask for 135M parameters, in steps", "{:.2f}"),
    ("bench/isolation", "epi_bytes_per_parameter", "memory of isolation, bytes a parameter", "{:.3f}"),
    ("bench/softlabels", "keyword_vs_loop", "keyword scores over a plain double loop's, 100,000 texts", "{:.0f}x"),
    ("bench/softlabels", "seconds", "seconds for 100,000 texts and 100 labels, leave-one-out", "{:.1f}"),
    (
        "bench/retrieval",
        "search_vs_faiss",
        "searches/s through the index over bare faiss: the least of six cases",
        "{:.2f}",
    ),
    ("bench/retrieval", "encode_vs_sentence_transformers", "texts/s encoded over sentence-transformers", "{:.2f}"),
    (
        "bench/retrieval",
        "train_vs_sentence_transformers",
        "retriever training pairs/s over sentence-transformers' trainer",
        "{:.2f}",
    ),
    ("studies/retrieval", "ndcg10_bm25", "part of medquad without titles, nDCG@10: BM25", "{:.3f}"),
    ("studies/retrieval", "ndcg10_base", "the same by the untouched all-MiniLM", "{:.3f}"),
    ("studies/retrieval", "ndcg10_mnrl", "tuned by sentence-transformers, same data and steps", "{:.3f}"),
    ("studies/retrieval", "ndcg10_quadruplet", "tuned by the quadruplet loss", "{:.3f}"),
    ("studies/retrieval", "quadruplet_minus_base", "quadruplet minus untouched", "{:+.3f}"),
    ("studies/retrieval", "quadruplet_minus_infonce_hard", "quadruplet minus InfoNCE with hard negatives", "{:+.3f}"),
    ("studies/retrieval", "ndcg10_le", "with label enhancement, the better of two losses", "{:.3f}"),
    ("studies/retrieval", "infonce_hard_le_minus_none", "InfoNCE: label enhancement minus none", "{:+.3f}"),
    ("studies/retrieval", "infonce_hard_le_minus_le_permuted", "the same minus permuted", "{:+.3f}"),
    ("studies/retrieval", "infonce_hard_le_minus_none_cold", "minus none, with 32 training queries", "{:+.3f}"),
    ("bench/resume", "kills", "SIGKILLs of driver, explorer and trainer at random moments", "{}"),
    ("bench/resume", "identical", "of them: artefacts byte-identical to the undisturbed run's", "{}"),
    ("bench/resume", "max_repeated_units", "most units of work that a kill repeated", "{}"),
    ("bench/serve", "throughput_vs_bare_app", "served scores/s over a bare FastAPI app's, one replica each", "{:.2f}x"),
    ("bench/serve", "batches_vs_single_calls", "the model alone: scores/s in batches over single calls", "{:.2f}x"),
    ("bench/serve", "throughput_vs_direct_batches", "served scores/s over the model's own in batches", "{:.2f}x"),
    ("bench/serve", "added_p50_ms", "what serving adds to a single request, median, ms", "{:.1f}"),
    ("bench/serve", "p99_ms_half_load", "99% of requests at half load are answered within, ms", "{:,.0f}"),
    ("bench/serve", "fuzz_5xx", "5xx answers to generated requests", "{}"),
    ("bench/serve", "soak_minutes", "soak with a replica killed each minute, minutes", "{:g}"),
    ("bench/serve", "soak_answers", "answers in the soak", "{:,}"),
    ("bench/serve", "soak_wrong_answers", "of them wrong", "{}"),
    ("bench/serve", "soak_lost_upserts", "acknowledged documents that were lost", "{}"),
    ("bench/serve", "soak_retryable_errors", "requests that failed with an error to be retried", "{}"),
    ("bench/serve", "soak_other_errors", "requests that failed otherwise", "{}"),
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
    (
        "studies/crps",
        "multiplier_extrapolated",
        "the same off a line through all sizes, mostly beyond the largest (1/64 to 64)",
        "{:.1f}",
    ),
    ("studies/crps", "rejection_points_per_doubling", "points that twice the rejection-sampled chains add", "{:+.1%}"),
    ("studies/crps", "ood_rejection_points_per_doubling", "the same out of domain", "{:+.1%}"),
    ("studies/crps", "multiplier_equal_tokens", "the same for a quarter of the search's tokens", "{:.1f}"),
    ("studies/crps", "crps_minus_rejection", "points by contrast minus by rejection sampling, equal chains", "{:+.1%}"),
    ("studies/crps", "ood_crps_minus_rejection", "the same out of domain", "{:+.1%}"),
    ("studies/crps", "crps_minus_fewest_steps", "anchors by form minus the shortest right paths", "{:+.1%}"),
    ("studies/crps", "crps_minus_form_without_search", "tree search minus independent samples, by form", "{:+.1%}"),
    ("studies/crps", "check_minus_crps", "telling the pitfall as a check minus not telling it", "{:+.1%}"),
    ("studies/crps", "crps_minus_shuffled_critique", "the problem's own critique minus another's", "{:+.1%}"),
    (
        "studies/crps",
        "keep_minus_crps",
        "chains of the 60% of problems with the best forms minus of all, equal chains",
        "{:+.1%}",
    ),
    ("studies/crps_real", "crps_minus_rejection", "SmolLM2-135M, three seeds: contrast minus rejection", "{:+.1%}"),
    ("studies/crps_real", "crps_minus_best_path", "the same: contrast minus the tree's best path", "{:+.1%}"),
    ("studies/crps_real", "crps_minus_analyst_only", "the same: contrast minus solutions without a tree", "{:+.1%}"),
    ("studies/word_problems", "accuracy_before_in_domain", "MAWPS one-step problems: accuracy before", "{:.1%}"),
    ("studies/word_problems", "accuracy_prompted_in_domain", "before, with the search's worked examples", "{:.1%}"),
    ("studies/word_problems", "accuracy_after_in_domain", "after one loop", "{:.1%}"),
    ("studies/word_problems", "gain_out_of_domain", "gain on SVAMP and GSM8K", "{:+.1%}"),
    ("studies/ilp", "prevalence", "planted causes: share of samples that are unlearned", "{:.1%}"),
    ("studies/ilp", "macro_f1", "macro-F1 of the five causes of unlearned samples", "{:.2f}"),
    ("studies/ilp", "best_baseline_macro_f1", "the same by the best of four baselines", "{:.2f}"),
    ("studies/ilp", "false_alarm_rate", "clean samples called unlearned", "{:.1%}"),
    ("studies/ilp", "diagonal_wins", "causes that their own repair mends best, of five", "{:.0f}"),
    ("studies/ilp_real", "prevalence_unlearned", "SmolLM2 on bank customers' questions: samples unlearned", "{:.1%}"),
    ("studies/ilp_real", "mended_control", "those not learned that are right after as many further steps", "{:.1%}"),
    ("studies/ilp_real", "mended_plan_minus_control", "the same: with the plan minus that", "{:+.1%}"),
    (
        "studies/ilp_real",
        "kept_plan_minus_control",
        "those learned that are right: with the plan minus that",
        "{:+.1%}",
    ),
    ("studies/ilp_real", "all_plan_minus_control", "all of them: with the plan minus that", "{:+.1%}"),
    ("studies/ilp_real", "held_plan_minus_control", "questions held out, right: with the plan minus that", "{:+.1%}"),
    ("bench/diagnose_real", "full_vs_epoch", "SmolLM2: a full diagnosis over one epoch of its training", "{:.2f}"),
    ("bench/diagnose_real", "screen_vs_epoch", "the same: a screen of 32 samples", "{:.2f}"),
    ("bench/diagnose_real", "not_learned", "the same: samples of which there was something to find out", "{:.0%}"),
    ("bench/diagnose", "full_vs_epoch", "a micro model: a full diagnosis over one epoch", "{:.2f}"),
    ("bench/diagnose", "screen_vs_epoch", "the same: a screen of a tenth of the samples", "{:.2f}"),
    (
        "studies/softlabels",
        "macro_f1_hard_imbalanced",
        "frozen all-MiniLM, long tail of 100 to 1, macro-F1: hard",
        "{:.3f}",
    ),
    ("studies/softlabels", "macro_f1_uniform_imbalanced", "the same with uniform smoothing", "{:.3f}"),
    ("studies/softlabels", "macro_f1_permuted_imbalanced", "the same with permuted keyword labels", "{:.3f}"),
    ("studies/softlabels", "macro_f1_kwls_imbalanced", "the same with keyword labels, leave-one-out", "{:.3f}"),
    ("studies/softlabels", "kwls_minus_uniform_imbalanced", "keyword labels minus uniform smoothing there", "{:+.3f}"),
    ("studies/softlabels", "kwls_centred_minus_uniform_imbalanced", "centred keyword labels minus uniform", "{:+.3f}"),
    (
        "studies/softlabels",
        "kwls_balanced_minus_uniform_imbalanced",
        "balanced keyword labels minus uniform",
        "{:+.3f}",
    ),
    (
        "studies/softlabels",
        "kwls_balanced_minus_balanced_permuted_imbalanced",
        "balanced keyword labels minus the same permuted",
        "{:+.3f}",
    ),
    ("studies/softlabels", "kwls_minus_uniform", "keyword labels minus uniform on all texts", "{:+.3f}"),
    ("studies/epi", "forgetting_full", "micro, four tasks in a row: forgetting of full fine-tuning", "{:.1%}"),
    ("studies/epi", "forgetting_tuned_lr", "the same with the best learning rate", "{:.1%}"),
    ("studies/epi", "forgetting_static", "with a static mask", "{:.1%}"),
    ("studies/epi", "forgetting_random", "with random masks", "{:.1%}"),
    ("studies/epi", "forgetting_epi", "with evolving isolation", "{:.1%}"),
    ("studies/epi", "new_task_full", "new tasks right when their training ends: full fine-tuning", "{:.1%}"),
    ("studies/epi", "new_task_epi", "the same with evolving isolation", "{:.1%}"),
    ("studies/epi", "final_epi_minus_tuned_lr", "all tasks in the end: isolation minus best learning rate", "{:+.1%}"),
    ("studies/epi", "final_epi_minus_random", "the same: isolation minus random masks", "{:+.1%}"),
    (
        "studies/epi",
        "beyond_front_epi",
        "how much less isolation forgets than learning rates that learn as much",
        "{:+.1%}",
    ),
    ("studies/epi", "beyond_front_lora", "the same by LoRA", "{:+.1%}"),
    ("studies/epi", "drift_overlap", "overlap of the last mask with the first, disjoint batches", "{:.2f}"),
    ("studies/epi", "drift_noise_ceiling", "the same at one time: what noise leaves", "{:.2f}"),
    ("studies/epi_real", "new_task_full_tokens", "SmolLM2-135M, four tasks, tokens right: full fine-tuning", "{:.1%}"),
    ("studies/epi_real", "new_task_epi_tokens", "the same with evolving isolation, a third of the rate", "{:.1%}"),
    ("studies/epi_real", "forgetting_full_tokens", "tokens forgotten: full fine-tuning", "{:.1%}"),
    ("studies/epi_real", "forgetting_epi_tokens", "the same with evolving isolation", "{:.1%}"),
    ("studies/epi_real", "final_epi_minus_tuned_lr_tokens", "in the end: isolation minus the tuned rate", "{:+.1%}"),
    ("studies/epi_real", "final_epi_minus_random_tokens", "in the end: isolation minus random masks", "{:+.1%}"),
    ("studies/sweep_isolation", "trials", "sweep of isolation schedules, two tasks, micro: trials", "{:,.0f}"),
    (
        "studies/sweep_isolation",
        "hypervolume",
        "its hypervolume, forgetting against new tasks, from the worst",
        "{:.3f}",
    ),
    ("studies/sweep_isolation", "forgetting_best_minus_full", "forgetting: its best minus full tuning", "{:+.1%}"),
    ("studies/sweep_isolation", "new_task_best_minus_full", "new tasks: its best minus full tuning", "{:+.1%}"),
    ("studies/sweep_smoothing", "trials", "sweep of label smoothing, frozen encoder, 300 questions: trials", "{:,.0f}"),
    ("studies/sweep_smoothing", "hypervolume", "its hypervolume, macro-F1 against nats, from the worst", "{:.3f}"),
    ("studies/sweep_smoothing", "macro_f1_best_minus_hard", "macro-F1 on test: its best minus hard labels", "{:+.1%}"),
    ("studies/sweep_smoothing", "nll_best_minus_hard", "nats a text on test: its best minus hard labels", "{:+.3f}"),
    ("bench/submit", "submit_to_first_log_seconds", "seconds from a submission to the job's first line", "{:.1f}"),
    ("bench/submit", "trials_per_hour", "sweep trials an hour at micro size, two cores", "{:.0f}"),
    ("bench/headloss", "failed_requests", "Serve's head killed and back: requests lost for good", "{:.0f}"),
    ("bench/headloss", "recovery_seconds", "seconds until Serve takes a new version again", "{:.0f}"),
    ("bench/reward", "branches_cost_ratio", "reward model: time of five branches over a plain classifier's", "{:.2f}"),
    ("bench/reward", "speedup_vs_generative", "a pair by the reward model over one by a generative judge", "{:.0f}x"),
    ("studies/srm", "pair_accuracy_scalar", "planted preferences: pairs ranked rightly by a scalar model", "{:.1%}"),
    ("studies/srm", "pair_accuracy_srm", "the same by a model of branches", "{:.1%}"),
    ("studies/srm", "pair_accuracy_shuffled", "the same with the branches' values shuffled", "{:.1%}"),
    ("studies/srm", "attribution_top1", "pairs whose largest share is the deciding dimension's", "{:.1%}"),
    ("studies/srm", "attribution_chance", "the same by chance", "{:.1%}"),
    ("studies/srm", "diagonal_wins_planted", "branches, of five, whose removal hurts their own dimension most", "{}"),
    ("studies/srm", "text_minus_scalar", "planted preferences: the published text fusion minus scalar", "{:+.1%}"),
    ("studies/srm", "text_minus_text_shuffled", "the same minus other texts' words", "{:+.1%}"),
    ("studies/srm", "srm_minus_scalar_topical_chat_usr", "rated chats: branches minus scalar", "{:+.1%}"),
    ("studies/srm", "srm_minus_scalar_summeval", "rated summaries: the same", "{:+.1%}"),
    ("studies/srm", "srm_minus_scalar_qa_feedback", "preferred answers: the same", "{:+.1%}"),
    (
        "studies/srm_best_of_n",
        "srm_vote_minus_majority",
        "vote of eight weighed by the reward model minus majority",
        "{:+.1%}",
    ),
    ("studies/srm_best_of_n", "srm_unchecked_minus_majority", "the same without the arithmetic check", "{:+.1%}"),
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

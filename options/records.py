"""The options that a run records: which of them may change, which a result tells, and what older records mean."""

from __future__ import annotations

# Options that do not count. A run that goes on compares its options with those it began with, all but MAY_CHANGE.
# A result tells all but NO_FACTS.
# where a run works and how long: not what comes out of it
WHERE = frozenset("name checkpoints_dir device data_root max_minutes save_every".split())
# another name may mean the same: what it stands for is compared instead
RENAMED = frozenset("recipe clean noisy synthetic_noisy teacher".split())
# what a run reports and how it computes: of no use to a reader
WATCHED = frozenset("log_every val val_every compile deterministic on_nonfinite".split())
# a checkpoint's own values and its configuration tell these
IN_CONFIG = frozenset("white_level width blocks mdc hole units student_width student_blocks".split())
MAY_CHANGE = WHERE | RENAMED | {"log_every", "on_nonfinite"}
NO_FACTS = WHERE | WATCHED | IN_CONFIG


def with_sigma_n(record: dict) -> dict:
    """A record of stage 1's options. One of an older version has --loss and --estimator in the place of --sigma-n."""
    if "loss" not in record:
        return record
    rest = {name: value for name, value in record.items() if name not in ("loss", "estimator")}
    return rest | {"sigma_n": "residual" if record.get("estimator") == "residual" else record["loss"]}

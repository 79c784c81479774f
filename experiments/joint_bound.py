"""The upper bound of split digits: everything at once, class-incrementally judged."""

from nested.claims import Claim

CLAIM = Claim(
    name="joint_bound",
    statement="split digits, class: joint training of the small transformer reaches 0.98",
    command=[
        "nested", "run", "recipe=digits_transformer", "method=joint", "seeds=[20,21,22]", "tracking=off",
        "trainer.progress=false", "--json",
    ],
    budget_seconds=90,
    metric="mean.acc",
    expected=0.98,
    tolerance=0.02,
    seeds=(20, 21, 22),
)  # fmt: skip

"""Flags of moment matching that the examples on pictures share, and what they make."""

from absl import app, flags

import keras_imm

# What the flags are that were not set; --k and --min_gap are the mapping's in both.
RECIPES = {
    "small_budget": {
        name: value
        for name, value in keras_imm.recipes.SMALL_BUDGET.items()
        if name != "time_mapping"
    },
    "published": {},
}

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "recipe",
    "small_budget",
    list(RECIPES),
    "Sets --second_time, --time_scale, --times and --flow_matching_share where they "
    "are not given: keras_imm.recipes.SMALL_BUDGET, or as published but for a smallest "
    "gap, which are the defaults below.",
)
flags.DEFINE_integer("group_size", 4, "Particles per group, M.", lower_bound=1)
flags.DEFINE_float("label_dropout", 0.1, "How often a label becomes the null label.")
flags.DEFINE_bool(
    "drop_target_labels", True, "Whether a label is dropped in the target's pass too."
)
flags.DEFINE_float("time_scale", 1000.0, "Factor of the times that the network sees.")
flags.DEFINE_enum(
    "second_time", "s", ["s", "stride"], "Second time input: s, or stride for t - s."
)
flags.DEFINE_enum(
    "times", "uniform", ["uniform", "logit_normal"], "Distribution of (s, t)."
)
flags.DEFINE_float("times_mean", -0.4, "Mean of the logit of logit-normal times.")
flags.DEFINE_float("times_std", 1.0, "Standard deviation of that logit.")
flags.DEFINE_float(
    "flow_matching_share", 0.0, "Share of the groups that learn the flow's velocity."
)
flags.DEFINE_integer(
    "k", 12, "Gap of the mapping r(s, t): (eta(T) - eta(0)) / 2^k.", lower_bound=1
)
flags.DEFINE_float("min_gap", 0.005, "Smallest gap t - r of that mapping.")
flags.DEFINE_enum(
    "schedule", "flow_matching", ["flow_matching", "cosine"], "alpha_t and sigma_t."
)
flags.DEFINE_enum(
    "parameterization",
    "euler_fm",
    ["euler_fm", "simple_edm", "identity"],
    "c_skip, c_out and c_in of the flow map.",
)
flags.DEFINE_float("min_time", None, "Start of the time range. Default: the method's.")
flags.DEFINE_float("max_time", None, "End of the time range. Default: the method's.")
flags.DEFINE_enum("kernel", "laplace", ["laplace", "rbf", "energy"], "The kernel.")
flags.DEFINE_integer("a", 1, "Exponent a of the weighting w(s, t).", lower_bound=1)
flags.DEFINE_float("b", 4.0, "Bias b of the weighting w(s, t).")


def choose_recipe():
    """Gives the flags that were not set the values of --recipe."""
    for name, value in RECIPES[FLAGS.recipe].items():
        if not FLAGS[name].present:
            FLAGS[name].value = value


def check_batch_size(objective):
    """Raises UsageError unless a batch is whole groups of all their roles."""
    rows = objective.rows_together
    if FLAGS.batch_size % rows:
        raise app.UsageError(
            f"--batch_size must be a multiple of {rows}, by --group_size and "
            f"--flow_matching_share. Received: --batch_size={FLAGS.batch_size}"
        )


def times():
    if FLAGS.times == "uniform":
        return "uniform"
    return keras_imm.time_distributions.LogitNormal(FLAGS.times_mean, FLAGS.times_std)


def flow_map_arguments():
    """Arguments of `keras_imm.FlowMapModel` that make its flow map."""
    names = ("schedule", "parameterization", "second_time", "time_scale")
    values = {name: FLAGS[name].value for name in (*names, "min_time", "max_time")}
    return {name: value for name, value in values.items() if value is not None}


def objective_arguments():
    """Arguments of `keras_imm.objectives.MomentMatching`, which `IMM` takes too."""
    return {
        "time_mapping": keras_imm.time_mappings.EtaDecrement(
            k=FLAGS.k, min_gap=FLAGS.min_gap
        ),
        "kernel": FLAGS.kernel,
        "weighting": keras_imm.weightings.ELBO(a=FLAGS.a, b=FLAGS.b),
        "group_size": FLAGS.group_size,
        "label_dropout": FLAGS.label_dropout,
        "drop_target_labels": FLAGS.drop_target_labels,
        "times": times(),
        "flow_matching_share": FLAGS.flow_matching_share,
    }

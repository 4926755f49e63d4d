from .labels import (
    Arm,
    Labels,
    ReferenceArm,
    check_labels,
    covers_most_steps,
    label_like_expert,
    label_random_states,
    labels_from_annotations,
)
from .reward_relabelling import relabel, scale_of_returns
from .rule_labels import RuleLabels, labels_from_rules, rule_arm_labels, rule_arm_lists
from .weighting import LabelHypothesis, keep, list_readings, weigh_labels

__all__ = [
    "Arm",
    "LabelHypothesis",
    "Labels",
    "ReferenceArm",
    "RuleLabels",
    "check_labels",
    "covers_most_steps",
    "keep",
    "label_like_expert",
    "label_random_states",
    "labels_from_annotations",
    "labels_from_rules",
    "list_readings",
    "relabel",
    "rule_arm_labels",
    "rule_arm_lists",
    "scale_of_returns",
    "weigh_labels",
]

"""Stub of their common fields of configurations, which the source distribution lacks."""

config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["EZClipModel"],
    "id2label": {0: "archery", 1: "bowling"},
    "label2id": {"archery": 0, "bowling": 1},
    "problem_type": "regression",
}

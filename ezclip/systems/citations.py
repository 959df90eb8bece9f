"""Descriptions of published systems and their BibTeX entries."""

from dataclasses import dataclass

from configuration_ezclip import BASE_MODELS, EZClipConfig


CITATIONS = {
    "ezclip": """\
@article{ahmad2023ezclip,
  title   = {EZ-CLIP: Efficient Zeroshot Video Action Recognition},
  author  = {Ahmad, Shahzad and Chanda, Sukalpa and Rawat, Yogesh S.},
  journal = {arXiv preprint arXiv:2312.08010},
  year    = {2023}
}
@article{ahmad2025t2l,
  title   = {T2L: Efficient Zero-Shot Action Recognition with Temporal Token Learning},
  author  = {Ahmad, Shahzad and Chanda, Sukalpa and Rawat, Yogesh S.},
  journal = {Transactions on Machine Learning Research},
  year    = {2025}
}""",
    "actionclip": """\
@article{wang2021actionclip,
  title   = {ActionCLIP: A New Paradigm for Video Action Recognition},
  author  = {Wang, Mengmeng and Xing, Jiazheng and Liu, Yong},
  journal = {arXiv preprint arXiv:2109.08472},
  year    = {2021}
}""",
    "vificlip": """\
@inproceedings{rasheed2023vificlip,
  title     = {Fine-tuned CLIP Models are Efficient Video Learners},
  author    = {Rasheed, Hanoona and Khattak, Muhammad Uzair and Maaz, Muhammad and Khan, Salman and
               Khan, Fahad Shahbaz},
  booktitle = {CVPR},
  year      = {2023}
}""",
    "tear": """\
@article{bosetti2024tear,
  title   = {Text-Enhanced Zero-Shot Action Recognition: A training-free approach},
  author  = {Bosetti, Massimo and Zhang, Shibingfeng and Liberatori, Benedetta and Zara, Giacomo and Ricci, Elisa and
             Rota, Paolo},
  journal = {arXiv preprint arXiv:2408.16412},
  year    = {2024}
}""",
}

# Of the towers, by model type. CLIP's own paper is cited by those above.
TOWER_CITATIONS = {
    "siglip": """\
@inproceedings{zhai2023siglip,
  title     = {Sigmoid Loss for Language Image Pre-Training},
  author    = {Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle = {ICCV},
  year      = {2023}
}""",
    "siglip2": """\
@article{tschannen2025siglip2,
  title   = {SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and
             Dense Features},
  author  = {Tschannen, Michael and Gritsenko, Alexey and Wang, Xiao and others},
  journal = {arXiv preprint arXiv:2502.14786},
  year    = {2025}
}""",
    "metaclip_2": """\
@article{chuang2025metaclip2,
  title   = {Meta CLIP 2: A Worldwide Scaling Recipe},
  author  = {Chuang, Yung-Sung and Li, Yang and Wang, Dong and others},
  journal = {arXiv preprint arXiv:2507.22062},
  year    = {2025}
}""",
    "altclip": """\
@article{chen2022altclip,
  title   = {AltCLIP: Altering the Language Encoder in CLIP for Extended Language Capabilities},
  author  = {Chen, Zhongzhi and Liu, Guang and Zhang, Bo-Wen and Ye, Fulong and Yang, Qinghong and Wu, Ledell},
  journal = {arXiv preprint arXiv:2211.06679},
  year    = {2022}
}""",
    "chinese_clip": """\
@article{yang2022chineseclip,
  title   = {Chinese CLIP: Contrastive Vision-Language Pretraining in Chinese},
  author  = {Yang, An and Pan, Junshu and Lin, Junyang and Men, Rui and Zhang, Yichang and Zhou, Jingren and
             Zhou, Chang},
  journal = {arXiv preprint arXiv:2211.01335},
  year    = {2022}
}""",
    "timm_wrapper": """\
@article{bolya2025perception,
  title   = {Perception Encoder: The best visual embeddings are not at the output of the network},
  author  = {Bolya, Daniel and Huang, Po-Yao and Sun, Peize and others},
  journal = {arXiv preprint arXiv:2504.13181},
  year    = {2025}
}""",
}
TOWER_NAMES = {**BASE_MODELS, "ezclip": BASE_MODELS["clip"], "timm_wrapper": "PE-Core"}


def tower_family(config: EZClipConfig) -> str:
    """Return the family of the vision tower, a key of `TOWER_NAMES`: "ezclip" stands for CLIP's own towers."""
    return config.vision_config.model_type.removesuffix("_vision_model")


@dataclass
class SystemDescription:
    """
    A description of a system.

    Args:
        presets (`list[str]`):
            Presets of the published systems with this architecture. Empty for a mixture of several.
        text (`str`):
            One paragraph.
        citations (`list[str]`):
            BibTeX entries of the systems whose parts it has.
    """

    presets: list[str]
    text: str
    citations: list[str]


def describe_system(config: EZClipConfig, sampling: str | None = None) -> SystemDescription:
    """
    Describe the system that a configuration defines.

    Args:
        config ([`EZClipConfig`]):
            The configuration of the model.
        sampling (`str`, *optional*):
            The sampling of its processor. `"tear"` tells TEAR from plain CLIP.
    """
    ezclip = _ezclip_parts(config)
    actionclip = _actionclip_parts(config)
    family = tower_family(config)
    base = TOWER_NAMES[family]
    backbone = f"{base} stays frozen" if config.freeze_backbone else f"all of {base} is trained"
    if ezclip and actionclip:
        presets, cited = [], ["ezclip", "actionclip"]
        text = f"{base} with parts of EZ-CLIP and ActionCLIP: {backbone}; {'; '.join(ezclip + actionclip)}."
    elif ezclip:
        presets, cited = ["ezclip"], ["ezclip"]
        motion = "; the training loss rewards motion" if config.motion_loss_weight > 0 else ""
        text = f"EZ-CLIP (published again as T2L): {backbone}; {'; '.join(ezclip)}{motion}."
    elif actionclip:
        presets, cited = ["actionclip"], ["actionclip"]
        text = f"ActionCLIP: {backbone}; {'; '.join(actionclip)}."
    elif not config.freeze_backbone:
        presets, cited = ["vificlip", "actionclip"], ["vificlip", "actionclip"]
        text = (
            f"{base} with all weights trained on videos and the frame embeddings averaged: the architecture of "
            "ViFi-CLIP, and of ActionCLIP without a temporal head."
        )
    elif sampling == "tear":
        presets, cited = ["tear"], ["tear"]
        text = (
            f"Plain {base} as TEAR uses it, without training: the frame embeddings are averaged and compared with "
            "several texts for each class."
        )
    else:
        presets, cited = ["clip"], []
        text = f"Plain {base} on videos: the frame embeddings are averaged."
    towers = [TOWER_CITATIONS[family]] if family in TOWER_CITATIONS else []
    opening = "Zero-shot video action recognition: the model scores any list of labels for a video. "
    return SystemDescription(presets, opening + text, [CITATIONS[name] for name in cited] + towers)


def _ezclip_parts(config: EZClipConfig) -> list[str]:
    vision, text = config.vision_config, config.text_config
    where = {"deep": "every vision block", "shallow": "the first vision block"}
    parts = []
    if vision.temporal_prompt in where:
        parts.append(f"a temporal token joins the tokens of every frame in {where[vision.temporal_prompt]}")
    if vision.use_temporal_adapter:
        parts.append("every vision block attends over time through an adapter")
    if vision.use_adapter or text.use_adapter:
        towers = "both towers" if vision.use_adapter and text.use_adapter else "the vision tower"
        parts.append(f"adapters stand in {towers if vision.use_adapter else 'the text tower'}")
    return parts


def _actionclip_parts(config: EZClipConfig) -> list[str]:
    heads = {
        "transformer": f"a transformer of {config.temporal_head_layers} layers",
        "lstm": "an LSTM",
        "conv1d": "a convolution over time",
        "transformer_cls": f"a transformer of {config.temporal_head_layers} layers with a CLS token",
    }
    parts = []
    if config.vision_config.use_temporal_shift:
        parts.append("patch channels are shifted over time in every vision block")
    if config.vision_config.use_joint_attention:
        parts.append("the patches of all frames attend to each other")
    if config.temporal_head in heads:
        parts.append(f"{heads[config.temporal_head]} joins the frame embeddings")
    return parts

from .agreement import Agreement as Agreement, compare_embeddings as compare_embeddings
from .openvino_export import export_openvino as export_openvino
from .towers import TextTower as TextTower, VideoTower as VideoTower, write_onnx as write_onnx

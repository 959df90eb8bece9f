from .building import IndexCounts as IndexCounts, build_index as build_index
from .hits import Hit as Hit, save_hits as save_hits
from .index import VideoIndex as VideoIndex

from .results import Timeline as Timeline
from .search import find_segments as find_segments
from .segments import Segment as Segment
from .windows import Window as Window, slide_windows as slide_windows

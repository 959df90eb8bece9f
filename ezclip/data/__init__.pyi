from .dataset import (
    ReadReport as ReadReport,
)
from .dataset import (
    VideoCollator as VideoCollator,
)
from .dataset import (
    VideoDataset as VideoDataset,
)
from .dataset import (
    describe_split as describe_split,
)
from .dataset import (
    digest as digest,
)
from .dataset import (
    make_loader as make_loader,
)
from .isolated_reader import IsolatedReader as IsolatedReader
from .labels import (
    read_class_descriptions as read_class_descriptions,
)
from .labels import (
    read_label_list as read_label_list,
)
from .labels import (
    split_labels as split_labels,
)
from .lists import read_list as read_list
from .sources import (
    VideoSplit as VideoSplit,
)
from .sources import (
    load_files as load_files,
)
from .sources import (
    load_folder as load_folder,
)
from .sources import (
    load_hub_dataset as load_hub_dataset,
)
from .sources import (
    load_list as load_list,
)
from .splits import (
    draw_classes as draw_classes,
)
from .splits import (
    draw_shots as draw_shots,
)
from .splits import (
    find_overlap as find_overlap,
)
from .splits import (
    halve_classes as halve_classes,
)
from .splits import (
    save_split as save_split,
)
from .splits import (
    select_classes as select_classes,
)
from .streaming import StreamedVideos as StreamedVideos
from .streaming import stream_hub_dataset as stream_hub_dataset
from .transforms import TrainTransform as TrainTransform

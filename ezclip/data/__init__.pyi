from .dataset import (
    ReadReport as ReadReport,
    VideoCollator as VideoCollator,
    VideoDataset as VideoDataset,
    make_loader as make_loader,
)
from .isolated_reader import IsolatedReader as IsolatedReader
from .labels import (
    read_class_descriptions as read_class_descriptions,
    read_label_list as read_label_list,
    split_labels as split_labels,
)
from .lists import read_list as read_list
from .machine_plan import MachinePlan as MachinePlan, plan_machine as plan_machine
from .sources import (
    VideoSplit as VideoSplit,
    find_videos as find_videos,
    load_files as load_files,
    load_folder as load_folder,
    load_hub_dataset as load_hub_dataset,
    load_list as load_list,
)
from .splits import (
    draw_classes as draw_classes,
    draw_shots as draw_shots,
    find_overlap as find_overlap,
    halve_classes as halve_classes,
    save_split as save_split,
    select_classes as select_classes,
)
from .streaming import StreamedVideos as StreamedVideos, stream_hub_dataset as stream_hub_dataset
from .transforms import TrainTransform as TrainTransform

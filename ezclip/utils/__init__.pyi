from .files import (
    check_folder_names as check_folder_names,
    flush as flush,
    read_text as read_text,
    replacing as replacing,
    write_json as write_json,
)
from .memory import return_freed_memory as return_freed_memory
from .ray_stages import RayPlan as RayPlan, RayStages as RayStages
from .synthetic_clips import (
    draw_clip as draw_clip,
    draw_still as draw_still,
    render_videos as render_videos,
    write_video as write_video,
)
from .tables import as_markdown_table as as_markdown_table
from .timing import (
    compare as compare,
    describe_machine as describe_machine,
    machine_as_text as machine_as_text,
    measure as measure,
    summarize as summarize,
)
from .yaml_files import read_yaml as read_yaml

from .files import (
    check_folder_names as check_folder_names,
)
from .files import (
    flush as flush,
)
from .files import (
    read_text as read_text,
)
from .files import (
    replacing as replacing,
)
from .files import (
    write_json as write_json,
)
from .memory import return_freed_memory as return_freed_memory
from .synthetic_clips import (
    draw_clip as draw_clip,
)
from .synthetic_clips import (
    draw_still as draw_still,
)
from .synthetic_clips import (
    render_videos as render_videos,
)
from .synthetic_clips import (
    write_video as write_video,
)
from .tables import as_markdown_table as as_markdown_table
from .timing import (
    compare as compare,
)
from .timing import (
    describe_machine as describe_machine,
)
from .timing import (
    machine_as_text as machine_as_text,
)
from .timing import (
    measure as measure,
)
from .timing import (
    summarize as summarize,
)
from .yaml_files import read_yaml as read_yaml

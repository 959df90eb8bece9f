"""Published lists: their forms, their numberings and errors planted in copies of them."""

import pytest

from ezclip import EZClipProcessor
from ezclip.data.labels import read_class_descriptions, read_label_list
from ezclip.data.lists import read_list
from ezclip.data.sources import load_list
from ezclip.data.splits import check_disjoint
from ezclip.errors import DataError
from tests.helpers import shared_path


EZCLIP, TEAR = ("data", "EZ-CLIP"), ("data", "tear", "txt")
UCF, HMDB = "lists/ucf_labels.csv", "lists/hmdb51_labels.csv"
UCF_BASE = "dataset_splits/UCF/base_to_novel/ucf_base_train_class_list.csv"
UCF_NOVEL = "dataset_splits/UCF/base_to_novel/ucf_novel_val_class_list.csv"
HMDB_BASE = "dataset_splits/HMDB/base_to_novel/hmdb_base_train_class_list.csv"
HMDB_NOVEL = "dataset_splits/HMDB/base_to_novel/hmdb_novel_val_class_list.csv"
# list, its label list, videos, classes that have videos
PUBLISHED = [
    ("UCF/Zero_shot/train", UCF, 9537, 101),
    ("UCF/Zero_shot/test", UCF, 3783, 101),
    ("UCF/Zero_shot/test_DS", UCF, 3841, 47),
    *((f"UCF/Few_shot/my_ucf_few_shot_{k}", UCF, 101 * k, 101) for k in (2, 4, 8, 16)),
    *((f"UCF/base_to_novel/FS_base_train_s{n}", UCF_BASE, 816, 51) for n in (1, 2, 3)),
    ("UCF/base_to_novel/ucf_base_train", UCF_BASE, 5385, 51),
    ("UCF/base_to_novel/ucf_base_val", UCF_BASE, 2088, 51),
    ("UCF/base_to_novel/ucf_novel_val", UCF_NOVEL, 1695, 50),
    ("HMDB/Zero_shot/train", HMDB, 5236, 51),
    ("HMDB/Zero_shot/test", HMDB, 1530, 51),
    *((f"HMDB/Few_shot/my_hmdb_few_shot_{k}", HMDB, 51 * k, 51) for k in (2, 4, 8, 16)),
    *((f"HMDB/base_to_novel/FS_base_train_s{n}", HMDB_BASE, 416, 26) for n in (1, 2, 3)),
    ("HMDB/base_to_novel/hmdb_base_train", HMDB_BASE, 1820, 26),
    ("HMDB/base_to_novel/hmdb_base_val", HMDB_BASE, 780, 26),
    ("HMDB/base_to_novel/hmdb_novel_val", HMDB_NOVEL, 750, 25),
    ("K-600/Zero_shot/test_600_exclusive", "lists/kinetics_600_labels_exclusive.csv", 11462, 232),
]


def load_beside_one_video(root, list_file, label_list=None):
    """Load a list whose first video exists below `root`, as an empty file."""
    (root / read_list(list_file)[0].path.split("/")[-1]).touch()
    return load_list(list_file, label_list, root)


def planted(tmp_path, list_file, change):
    """Return a copy of a list that `change` has edited."""
    lines = list_file.read_text().splitlines()
    change(lines)
    copy = tmp_path / list_file.name
    copy.write_text("\n".join(lines) + "\n")
    return copy


@pytest.fixture
def ucf_test():
    return shared_path(*EZCLIP, "dataset_splits", "UCF", "Zero_shot", "test.txt")


@pytest.fixture
def ucf_labels():
    return shared_path(*EZCLIP, UCF)


@pytest.mark.parametrize(("name", "label_list", "videos", "classes"), PUBLISHED)
def test_lists_of_ez_clip(tmp_path, caplog, name, label_list, videos, classes):
    list_file = shared_path(*EZCLIP, "dataset_splits", f"{name}.txt")
    split = load_beside_one_video(tmp_path, list_file, shared_path(*EZCLIP, label_list))
    labels = split.videos["label"][:]
    assert len(split) == len(set(split.videos["name"])) == videos
    assert len(set(labels)) == classes and min(labels) == 0 and max(labels) < len(split.class_names)
    first = read_list(list_file)[0]
    assert split.videos["video"][0] == str(tmp_path / first.path.split("/")[-1])
    if "K-600" not in name:
        assert split.class_names[labels[0]].lower().replace(" ", "_") in first.path.lower()
    assert f"{videos - 1} of the {videos} videos of {list_file} do not exist; the first is " in caplog.text


@pytest.mark.parametrize("labels", [(*TEAR, "ucf101", "classInd.txt"), (*EZCLIP, UCF), None])
@pytest.mark.parametrize(("name", "videos"), [("testlist01", 3783), ("testlist02", 3734), ("trainlist03", 9624)])
def test_lists_of_tear_for_ucf(tmp_path, labels, name, videos):
    # Ids count from 0 in the list and from 1 in its label list.
    list_file = shared_path(*TEAR, "ucf101", f"{name}.txt")
    split = load_beside_one_video(tmp_path, list_file, labels and shared_path(*labels))
    assert len(split) == videos and len(split.class_names) == 101
    names = [split.class_names[label] for label in split.videos["label"]]
    folders = [entry.path.split("/")[0] for entry in read_list(list_file)]
    assert [name.lower() for name in names] == [folder.lower() for folder in folders]


def test_list_of_tear_for_hmdb(tmp_path):
    list_file = shared_path(*TEAR, "hmdb51", "test_split1.txt")
    split = load_beside_one_video(tmp_path, list_file)
    assert len(split) == 1530 and len(split.class_names) == 51
    assert split.class_names[20:22] == ["kick", "kick_ball"]
    message = r"30 of the 30 videos of class 'kick ball' \(id 20\).*line 601, 'kick/FOOT.* 'kick', 'sword exercise'"
    with pytest.raises(DataError, match=message):
        load_beside_one_video(tmp_path, list_file, shared_path(*EZCLIP, HMDB))


@pytest.mark.parametrize("subset", [1, 2, 3])
def test_draws_of_tear_for_kinetics_600(subset):
    assert len(read_label_list(shared_path(*TEAR, "k600_split", f"k600_labels_split{subset}.txt"))) == 160


# ---- Forms that the tests make ----


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def ucf_like(tmp_path):
    """Videos `CLASS/v_CLASS_g01_c0N.avi` of four classes below `videos`."""
    for name in ("ApplyEyeMakeup", "Archery", "HandStandPushups", "YoYo"):
        folder = tmp_path / "videos" / name
        folder.mkdir(parents=True)
        for clip in (1, 2):
            (folder / f"v_{name}_g01_c0{clip}.avi").touch()
    return tmp_path / "videos"


NAMES = ["ApplyEyeMakeup", "Archery", "HandstandPushups", "YoYo"]
FOLDERS = ["ApplyEyeMakeup", "Archery", "HandStandPushups", "YoYo"]
CLASS_IND = "".join(f"{i} {name}\n" for i, name in enumerate(NAMES, start=1))
CSV = "".join(f"{i},{name}\n" for i, name in enumerate(NAMES))


def ucf_list(number="", folders=FOLDERS):
    """Lines of an official list; `number` is a format for the position of a class in the folders, counted from 0."""
    return "".join(
        f"{folder}/v_{folder}_g01_c0{clip}.avi{number.format(i, i + 1)}\n"
        for i, folder in enumerate(folders)
        for clip in (1, 2)
    )


@pytest.mark.parametrize("labels", [CLASS_IND, CSV])
@pytest.mark.parametrize("number", ["", " {0}"])
def test_official_lists_of_ucf(tmp_path, ucf_like, caplog, labels, number):
    label_list = write(tmp_path / "labels.txt", labels)
    split = load_list(write(tmp_path / "list.txt", ucf_list(number)), label_list, ucf_like)
    assert split.class_names == NAMES and split.videos["label"][:] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert caplog.text == ""


def test_official_training_list_of_ucf_counts_from_1(tmp_path, ucf_like):
    from_1 = write(tmp_path / "list.txt", ucf_list(" {1}"))
    class_ind, csv = write(tmp_path / "classInd.txt", CLASS_IND), write(tmp_path / "labels.csv", CSV)
    assert load_list(from_1, class_ind, ucf_like).videos["label"][:] == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(DataError, match="class id 4 of 'YoYo/.* has ids 0 to 3"):
        load_list(from_1, csv, ucf_like)
    # Without the last class every id is in range, and means the class after the right one.
    part = write(tmp_path / "part.txt", ucf_list(" {1}", FOLDERS[:3]))
    with pytest.raises(DataError, match=r"class 'Archery' \(id 1\) .*'ApplyEyeMakeup'.* count from 1, unlike"):
        load_list(part, csv, ucf_like)
    # The reverse: ids from 0, without id 0, and a label list from 1
    part = write(tmp_path / "part.txt", "".join(ucf_list(" {0}").splitlines(keepends=True)[2:]))
    with pytest.raises(DataError, match="count from 0, unlike"):
        load_list(part, class_ind, ucf_like)


def test_folders_name_classes(tmp_path, ucf_like):
    split = load_list(write(tmp_path / "list.txt", ucf_list(" {0}")), None, ucf_like)
    assert split.class_names == FOLDERS and split.videos["label"][:] == [0, 0, 1, 1, 2, 2, 3, 3]
    mixed = ucf_list(" {0}").replace("Archery/", "YoYo/")
    split = load_list(write(tmp_path / "list.txt", mixed), None, ucf_like)
    assert split.class_names is None and split.videos["label"][:] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_folders_of_a_list_without_ids(tmp_path, ucf_like):
    label_list = write(tmp_path / "labels.csv", "0,archery\n1,yo_yo\n")
    with pytest.raises(DataError, match=r"line 1: folder 'ApplyEyeMakeup' .*labels.csv"):
        load_list(write(tmp_path / "list.txt", ucf_list()), label_list, ucf_like)
    label_list = write(tmp_path / "labels.csv", "0,clap\n1,wave\n")
    assert set(load_list(tmp_path / "list.txt", label_list, ucf_like).videos["label"]) == {-1}


def test_class_folders_missing_in_the_list(tmp_path, ucf_like):
    label_list = write(tmp_path / "labels.csv", CSV)
    flat = "/cluster/UCF/v_HandStandPushups_g01_c02 80 2\n/cluster/UCF/v_YoYo_g01_c01 80 3\n"
    split = load_list(write(tmp_path / "list.txt", flat), label_list, ucf_like)
    assert split.videos["video"][:] == [
        str(ucf_like / "HandStandPushups" / "v_HandStandPushups_g01_c02.avi"),
        str(ucf_like / "YoYo" / "v_YoYo_g01_c01.avi"),
    ]


def test_official_files_of_hmdb(tmp_path):
    folder = tmp_path / "testTrainMulti_7030_splits"
    folder.mkdir()
    label_list = write(tmp_path / "labels.csv", "id,name\n0,brush hair\n1,kick ball\n2,kick\n")
    for name in ("brush_hair", "kick", "kick_ball"):
        clips = [f"a movie_{name}_f_nm_np1_{n}.avi {part} \n" for n, part in enumerate("0112")]
        write(folder / f"{name}_test_split1.txt", "".join(clips))
        write(folder / f"{name}_test_split2.txt", "".join(clips[:2]))
    (tmp_path / "hmdb" / "kick").mkdir(parents=True)
    (tmp_path / "hmdb" / "kick" / "a movie_kick_f_nm_np1_3.avi").touch()
    split = load_list(folder / "*_test_split1.txt", label_list, tmp_path / "hmdb")
    assert split.videos["label"][:] == [0, 1, 2]
    assert split.videos["video"][2] == str(tmp_path / "hmdb" / "kick" / "a movie_kick_f_nm_np1_3.avi")
    (tmp_path / "hmdb" / "kick" / "a movie_kick_f_nm_np1_1.avi").touch()
    split = load_list(folder / "*_test_split1.txt", label_list, tmp_path / "hmdb", part="train")
    assert split.videos["label"][:] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="3 files, and none has a clip marked 2"):
        load_list(folder / "*_test_split2.txt", label_list, tmp_path / "hmdb")
    write(folder / "kick_test_split1.txt", "a movie_kick_f_nm_np1_3.avi 3\n")
    with pytest.raises(DataError, match="kick_test_split1.txt, line 1: 'a movie.* 3'"):
        load_list(folder / "*_test_split1.txt", label_list, tmp_path / "hmdb")


def test_missing_videos_are_counted(tmp_path, ucf_like, caplog):
    lines = ucf_list(" {0}") + "Archery/v_Archery_g09_c01.avi 1\nArchery/v_Archery_g09_c02.avi 1\n"
    split = load_list(write(tmp_path / "list.txt", lines), write(tmp_path / "labels.csv", CSV), ucf_like)
    assert len(split) == 10
    assert "2 of the 10 videos" in caplog.text and "the first is 'Archery/v_Archery_g09_c01.avi'" in caplog.text


def test_two_paths_of_one_file(tmp_path):
    label_list = write(tmp_path / "labels.csv", "0,clap\n1,wave\n")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "01.mp4").touch()
    path = write(tmp_path / "list.txt", "clap/01.mp4 0\nwave/01.mp4 1\nwave/02.mp4 1\n")
    with pytest.raises(DataError, match=r"line 1 \('clap/01.mp4'\) and line 2 .* of class 'clap'"):
        load_list(path, label_list, tmp_path / "videos")


def test_repeated_video_without_classes(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert len(load_list(write(tmp_path / "list.txt", "a.mp4\na.mp4\n"), None, tmp_path)) == 2


def test_files_named_after_no_class_or_many(tmp_path):
    label_list = write(tmp_path / "labels.csv", "0,run\n1,walk\n2,sit\n")
    names = ["run/clip1", "run/a walk and a run", "walk/trunk 2", "walk/walk3", "sit/IMG_1", "sit/IMG_2"]
    for name in names:
        (tmp_path / "run" / f"{name}.mp4").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / f"{name}.mp4").touch()
    lines = "".join(f"/data/run/{name}.mp4 10 {i // 2}\n" for i, name in enumerate(names))
    assert len(load_list(write(tmp_path / "list.txt", lines), label_list, tmp_path / "run")) == 6
    # Neither the shared root nor a part of a word names a class.
    lines = "".join(f"/data/run/trunk{i}.mp4 10 {i % 3}\n" for i in range(6))
    (tmp_path / "run" / "trunk0.mp4").touch()
    assert len(load_list(write(tmp_path / "list.txt", lines), label_list, tmp_path / "run")) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 a\n3 b\n", r"ids must be 1 to N without gaps; got \[1, 3\] … for 2 names, without \[2\]"),
        ("1 a\n1 b\n", "id 1 is there twice"),
        ("1 a\nb\n", "entry 2 is 'b'; each must be `id name`"),
        ("0 a\n1 b\n", "ids must be 1 to N"),
        ("1 HandStand\n2 Handstand\n", r"classes of the same name: \['HandStand', 'Handstand'\]"),
    ],
)
def test_errors_of_label_lists_with_blanks(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_label_list(write(tmp_path / "classInd.txt", content))


# ---- Errors planted in copies of published lists ----


def test_planted_id_out_of_range(tmp_path, ucf_test, ucf_labels):
    def change(lines):
        lines[11] = lines[11].rsplit(" ", 1)[0] + " 101"

    with pytest.raises(DataError, match="test.txt, line 12: class id 101 of .* has ids 0 to 100"):
        load_beside_one_video(tmp_path, planted(tmp_path, ucf_test, change), ucf_labels)


def test_planted_line_of_another_form(tmp_path, ucf_test, ucf_labels):
    def change(lines):
        lines[99] = lines[99].rsplit(" ", 1)[0]

    with pytest.raises(DataError, match="test.txt, line 100: .* is not `path num_frames id`"):
        load_beside_one_video(tmp_path, planted(tmp_path, ucf_test, change), ucf_labels)


def test_planted_video_twice(tmp_path, ucf_test, ucf_labels):
    copy = planted(tmp_path, ucf_test, lambda lines: lines.insert(500, lines[3]))
    with pytest.raises(DataError, match=r"test.txt: line 4 \(.*\) and line 501 \(.*\) are the same video"):
        load_beside_one_video(tmp_path, copy, ucf_labels)
    # The first video exists; its copy has another class.
    copy = planted(tmp_path, ucf_test, lambda lines: lines.append(lines[0].rsplit(" ", 1)[0] + " 0"))
    with pytest.raises(DataError, match=r"line 1 .* and line 3784 .*, of class 'SoccerPenalty'.* 'ApplyEyeMakeup'"):
        load_beside_one_video(tmp_path, copy, ucf_labels)


def test_planted_contradiction_of_file_names(tmp_path, ucf_labels):
    few = shared_path(*EZCLIP, "dataset_splits", "UCF", "Few_shot", "my_ucf_few_shot_2.txt")
    copy = planted(tmp_path, few, lambda lines: lines.__setitem__(slice(None), swap(lines, "2", "3")))
    message = r"2 of the 2 videos of class 'Archery' \(id 2\) .* 'BabyCrawling'; likewise 'BabyCrawling'"
    with pytest.raises(DataError, match=message):
        load_beside_one_video(tmp_path, copy, ucf_labels)


def swap(lines, first, second):
    """Lines with two ids in each other's place."""
    other = {first: second, second: first}
    parts = [line.rsplit(" ", 1) for line in lines]
    return [f"{path} {other.get(label, label)}" for path, label in parts]


def test_planted_mixed_numbering_of_hmdb(tmp_path):
    list_file = shared_path(*EZCLIP, "dataset_splits", "HMDB", "Zero_shot", "test.txt")
    copy = planted(tmp_path, list_file, lambda lines: lines.__setitem__(slice(None), swap(lines, "44", "45")))
    with pytest.raises(DataError, match=r"class 'sword exercise' \(id 44\).*'sword';.*HMDB-51"):
        load_beside_one_video(tmp_path, copy, shared_path(*EZCLIP, HMDB))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.pop(7), r"ids must be 0 to N - 1 .* 100 names, without \[6\]"),
        (lambda lines: lines.__setitem__(9, "8,Archery"), r"classes of the same name: \['Archery', 'Archery'\]"),
        (lambda lines: lines.insert(9, "3,Diving"), r"id 3 is there twice \('BabyCrawling' and 'Diving'\)"),
    ],
)
def test_planted_errors_of_a_label_list(tmp_path, ucf_labels, ucf_test, change, message):
    with pytest.raises(DataError, match=rf"ucf_labels.csv: {message}"):
        load_beside_one_video(tmp_path, ucf_test, planted(tmp_path, ucf_labels, change))


def test_planted_class_without_description(ucf_labels):
    descriptions = shared_path(*EZCLIP, "GPT_discription", "UCF_101_gpt_Class_discription_new.csv")
    texts = read_class_descriptions([descriptions])
    del texts["Diving"]
    with pytest.raises(ValueError, match="1 of 101 classes .* 'Diving'"):
        EZClipProcessor().get_prompts(read_label_list(ucf_labels), descriptions=texts)


def test_planted_foreign_root(tmp_path, ucf_test, ucf_labels):
    (tmp_path / "hmdb").mkdir()
    (tmp_path / "hmdb" / "other.avi").touch()
    with pytest.raises(DataError, match="None of the 3783 videos .* '/cluster/.*--video_root"):
        load_list(ucf_test, ucf_labels, tmp_path / "hmdb")


def test_planted_overlap_of_base_and_novel(tmp_path):
    base, novel = (shared_path(*EZCLIP, name) for name in (UCF_BASE, UCF_NOVEL))
    check_disjoint(read_label_list(base), read_label_list(novel))
    copy = planted(tmp_path, novel, lambda lines: lines.__setitem__(5, "4,Typing"))
    with pytest.raises(DataError, match=r"1 classes .*\['Typing'\]"):
        check_disjoint(read_label_list(base), read_label_list(copy))

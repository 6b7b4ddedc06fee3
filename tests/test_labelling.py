"""Labels and classes, by what lists say and by folders."""

import pytest

from pacecore.datasets import find_videos
from pacecore.errors import PacecoreError
from pacecore.finetune import labels_and_classes
from pacecore.index import DatasetError
from pacecore.source import VideoFiles
from tests.trees import labels, names, text, tree


@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_path_label_lists_count_from_0_or_1(base, separator, tmp_path):
    tree(tmp_path, "a b.avi", "c.avi", "d, e.avi")
    lines = [f"{n}{separator}{k + base}" for k, n in enumerate(("a b.avi", "c.avi", "d, e.avi"))]
    listed = text(tmp_path / "list.csv", "\ufeff" + "\r\n".join(lines))
    index = find_videos(listed)
    assert names(index) == ["a b.avi", "c.avi", "d, e.avi"]
    assert labels(index) == [0, 1, 2]
    assert index.classes == tuple(str(number + base) for number in range(3))


def test_a_list_without_the_first_class_names_the_others_as_listed(tmp_path):
    """A test list of its own: by their names its classes are matched with those of training."""
    tree(tmp_path, *(f"{name}.avi" for name in "abcde"))
    whole = text(tmp_path / "whole.csv", "a.avi 0\nb.avi 1\nc.avi 2\n")
    rest = text(tmp_path / "rest.csv", "d.avi 1\ne.avi 2\n")
    assert find_videos(whole).classes == ("0", "1", "2")
    index = find_videos(rest)
    assert [index.classes[label] for label in labels(index)] == ["1", "2"]


def test_the_folder_of_a_list_is_no_class(tmp_path):
    tree(tmp_path, "a.avi", "b.avi")
    assert find_videos(text(tmp_path / "list.csv", "a.avi,1\nb.avi,1\n")).classes == ("1",)
    assert find_videos(text(tmp_path / "two.csv", "a.avi,0\nb.avi,1\n")).classes == ("0", "1")


def test_a_class_without_a_video_has_its_listed_number_beside_the_others_names(tmp_path):
    tree(tmp_path, "x/a.avi", "y/b.avi")
    index = find_videos(text(tmp_path / "list.txt", "x/a.avi 1\ny/b.avi 3\n"))
    assert index.classes == ("x", "2", "y")
    assert labels(index) == [0, 2]


def test_folders_called_by_numbers_are_no_names_of_numbered_classes(tmp_path):
    """Beside the numbers listed they would say another class, or one twice."""
    tree(tmp_path, *(f"{name}/a.avi" for name in "1234"))
    lines = "".join(f"{name}/a.avi {label}\n" for label, name in enumerate("1234"))
    assert find_videos(text(tmp_path / "all.txt", lines)).classes == ("0", "1", "2", "3")
    index = find_videos(text(tmp_path / "some.txt", "1/a.avi 0\n2/a.avi 1\n4/a.avi 3\n"))
    assert index.classes == ("0", "1", "2", "3")
    assert labels(index) == [0, 1, 3]


def test_path_class_list_and_path_only_list(tmp_path):
    tree(tmp_path, "s/x/a.avi", "s/x/b c.avi", "s/y/d.avi")
    listed = text(tmp_path / "list.txt", "s/x/a.avi jump\ns/x/b c.avi sit\ns/y/d.avi jump\n")
    index = find_videos(listed)
    assert (index.classes, labels(index)) == (("jump", "sit"), [0, 1, 0])
    listed = text(tmp_path / "list.txt", "# mine\ns/x/a.avi\n\ns/x/b c.avi\ns/y/d.avi\n")
    index = find_videos(listed)
    assert (index.classes, labels(index)) == (("x", "y"), [0, 0, 1])
    inside = text(tmp_path / "s" / "x" / "list.txt", f"a.avi\n{tmp_path}/s/y/d.avi\n")
    assert labels(find_videos(inside)) == [None, None]
    two_folders = text(tmp_path / "list.txt", "s/x/a.avi 0\ns/y/d.avi 0\n")
    assert find_videos(two_folders).classes == ("0",)


def test_the_one_class_that_lines_name_is_a_class_and_one_folder_is_none(tmp_path):
    tree(tmp_path, "s/a.avi", "s/b.avi")
    for lines in ("s/a.avi,A\ns/b.avi,A\n", "path,label\ns/a.avi,A\ns/b.avi,A\n"):
        index = find_videos(text(tmp_path / "list.csv", lines))
        assert (index.classes, labels(index)) == (("A",), [0, 0])
        with pytest.raises(PacecoreError, match="needs two classes or more, got 1"):
            labels_and_classes(VideoFiles(index))
    index = find_videos(text(tmp_path / "list.csv", "s/a.avi\ns/b.avi\n"))
    assert (index.classes, labels(index)) == ((), [None, None])


def test_a_test_list_without_labels_whose_folders_are_classes_is_no_list_without_labels(tmp_path):
    tree(tmp_path, *(f"{name}/{n}.avi" for name in ("walk", "run") for n in "123"))
    text(tmp_path / "train.txt", "walk/1.avi walk\nrun/1.avi run\n")
    text(tmp_path / "val.txt", "walk/2.avi walk\nrun/2.avi run\n")
    text(tmp_path / "test.txt", "walk/3.avi\nrun/3.avi\n")
    assert [e.class_name for e in find_videos(tmp_path, split="test").entries] == ["run", "walk"]
    text(tmp_path / "train.txt", "walk/1.avi 0\nrun/1.avi 1\n")
    text(tmp_path / "val.txt", "walk/2.avi 0\nrun/2.avi 1\n")
    with pytest.raises(DatasetError, match=r"test\.txt line 1: has no number for a label"):
        find_videos(tmp_path)

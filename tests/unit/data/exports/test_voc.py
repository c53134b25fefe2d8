"""Pascal VOC as its devkit and annotation tools write it."""

from pathlib import Path

import exports_per_image as made
import pytest
import truths
from exports_per_image import Drawn
from read_per_image import (
    BOX,
    IMAGES,
    NAMES,
    ONE,
    boxes,
    objects_of,
    prepared,
    read,
    recognised,
    refused,
    voc_of,
)

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports import voc

ROBOFLOW = "<folder></folder><path>a.jpg</path><source><database>roboflow.com</database></source>"
LABEL_STUDIO = "<folder>images</folder><source><database>MyDatabase</database></source>"


@pytest.mark.parametrize(
    ("head", "shift"),
    [
        (made.DEVKIT, (1, 0)),
        ("<folder>VOC2012</folder>", (1, 0)),
        ("<folder>VOC</folder><source><database>roboflow.ai</database></source>", (1, 0)),
        ("<folder>VOC2012</folder>" + made.UNKNOWN, (0, 0)),
        (made.UNKNOWN, (0, 0)),
        (ROBOFLOW, (0, 0)),
        (LABEL_STUDIO, (0, 0)),
        ("", (0, 0)),
    ],
)
def test_edges_of_voc_are_as_its_writer_counts_pixels(
    head: str, shift: tuple[int, int], tmp_path: Path
) -> None:
    content = read(voc_of(tmp_path, head, shift))
    truths.assert_same_objects([BOX], boxes(content)["train:a.jpg"])  # pyright: ignore
    # Only where it is told by nothing, it is said, too, that nothing is taken off.
    assert bool(content.notes) == (shift == (1, 0) or not head or head == ROBOFLOW)


def test_without_a_source_an_edge_of_one_tells_how_voc_counts(tmp_path: Path) -> None:
    drawn = Drawn("a.jpg", "train", (64, 48), (("cat", (0, 6, 20, 30)), *ONE.objects))
    content = read(voc_of(tmp_path, "", (1, 0), drawn))
    truths.assert_same_objects(boxes(content)["train:a.jpg"], drawn.objects)  # pyright: ignore
    assert "no <source> says who wrote it; pixels are counted from 1" in content.notes[0]


def test_edges_of_voc_that_are_zero_are_not_counted_from_one(tmp_path: Path) -> None:
    drawn = Drawn("a.jpg", "train", (64, 48), (("cat", (0, 6, 20, 30)), *ONE.objects))
    content = read(voc_of(tmp_path, made.DEVKIT, drawn=drawn))
    truths.assert_same_objects(boxes(content)["train:a.jpg"], drawn.objects)  # pyright: ignore


def test_all_edges_of_roboflow_are_moved_where_one_is_outside(tmp_path: Path) -> None:
    drawn = Drawn("a.jpg", "train", (64, 48), (("cat", (5, 6, 64, 30)), *ONE.objects))
    content = read(voc_of(tmp_path, ROBOFLOW, (1, 1), drawn))
    truths.assert_same_objects(boxes(content)["train:a.jpg"], drawn.objects)  # pyright: ignore
    assert "one pixel less than written" in content.notes[0]


def test_supervision_and_this_reader_take_voc_alike(tmp_path: Path) -> None:
    import supervision

    whole = Drawn("b.png", "train", (40, 40), (("pear", (5, 6, 7, 30)),))
    made.write_devkit(tmp_path, (IMAGES[0], whole), NAMES)
    data = supervision.DetectionDataset.from_pascal_voc(
        str(tmp_path / "JPEGImages"), str(tmp_path / "Annotations")
    )
    for path, detections in data.annotations.items():
        assert detections.class_id is not None
        theirs = [
            (data.classes[c], tuple(map(float, b)))
            for c, b in zip(detections.class_id, detections.xyxy, strict=True)
        ]
        ours = boxes(read(tmp_path))[f"train:JPEGImages/{Path(path).name}"]
        truths.assert_same_objects(theirs, ours)  # pyright: ignore
    target = tmp_path / "written"
    data.as_pascal_voc(str(target / "JPEGImages"), str(target / "Annotations"))
    assert boxes(read(target)) == boxes(read(tmp_path))


def test_lists_of_voc_have_names_of_any_kind_and_a_missing_xml_is_said(tmp_path: Path) -> None:
    images = [Drawn(f"{stem}.jpg", "train", (20, 20), (("a", (1, 1, 9, 9)),)) for stem in
              ("a 1", "a", "q 2", "r", "c d", "e", "x")]  # fmt: skip
    made.write_devkit(tmp_path, images, ())
    for stem in ("e", "x"):
        (tmp_path / "Annotations" / f"{stem}.xml").unlink()
    main = tmp_path / "ImageSets" / "Main"
    lines = ["a 1", "  r  -1", "", '"q 2"', "e", "x.jpg"]
    (main / "train.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    (main / "val.txt").write_text("c d 1\r\n")
    (main / "trainval.txt").write_text("a 1\nr\nc d\n")
    (main / "cat_train.txt").write_text("a 1 1\na 1\n")
    content = read(tmp_path)
    places = [[p.path.stem for p in content.splits[split]] for split in ("train", "val")]
    assert places == [["a 1", "r", "q 2", "e", "x"], ["c d"]]
    assert [len(p.objects) for p in content.splits["train"]] == [1, 1, 1, 0, 0]
    assert any(
        f"2 of 6 listed images have no .xml in {tmp_path}/Annotations and are taken as" in note
        for note in content.notes
    )
    assert any("1 of 5 .xml files are of images that no list names" in n for n in content.notes)


def test_splits_of_voc_come_from_lists_alone(tmp_path: Path) -> None:
    images = [Drawn(f"{n}.jpg", "train", (20, 20), (("a", (1, 1, 9, 9)),)) for n in range(4)]
    main = tmp_path / "ImageSets" / "Main"
    made.write_devkit(tmp_path, images, ())
    main.joinpath("train.txt").rename(main / "trainval.txt")
    assert {s: len(p) for s, p in read(tmp_path).splits.items()} == {"train": 4}
    (main / "val.txt").write_text("3\n")
    assert {s: len(p) for s, p in read(tmp_path).splits.items()} == {"train": 3, "val": 1}
    (main / "train.txt").write_text("0\n3\n9\n")
    text = refused(tmp_path)
    assert "'3' is listed in train and in val; list it in one" in text
    assert "'9' of the list of train images: it is not among the images" in text
    assert "trainval.txt: '1' (and 1 more) is neither in train.txt nor in val.txt" in text
    for path in main.iterdir():
        path.unlink()
    (main / "cat_train.txt").write_text("0  1\n1 -1\n")
    (main / "dog_train.txt").write_text("0 -1\n2  1\n")
    (main / "dog_val.txt").write_text("3  1\n")
    assert {s: len(p) for s, p in read(tmp_path).splits.items()} == {"train": 3, "val": 1}
    (main / "mine.txt").write_text("0\n")
    assert "mine.txt: a list that is neither of train, val nor test" in refused(tmp_path)


@pytest.mark.parametrize("inside", ["", "VOCdevkit"])
def test_a_voc_devkit_of_two_years_is_one_data_set(inside: str, tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        made.write_devkit(tmp_path / inside / year, IMAGES, NAMES)
    assert recognised(tmp_path) == "Pascal VOC"
    content = read(tmp_path)
    assert {s: len(p) for s, p in content.splits.items()} == {"train": 4, "val": 2}
    start = f"{inside}/" if inside else ""
    assert f"train:{start}VOC2007/JPEGImages/a.jpg" in boxes(content)
    out = prepared(tmp_path, tmp_path / "out")
    assert out.made
    assert out.made.images == {"train": 4, "val": 2}


def test_label_studio_and_fiftyone_have_folders_of_other_names(tmp_path: Path) -> None:
    for kind, (images, annotations) in {
        "ls": ("images", "Annotations"), "fo": ("data", "labels")
    }.items():  # fmt: skip
        folder = tmp_path / kind
        made.draw(folder / images / "x-a.jpg", ONE.size)
        made.draw(folder / images / "bare.jpg", ONE.size)
        xml = made.voc_xml(ONE, LABEL_STUDIO).replace("a.jpg", "x-a")
        made.save(folder / annotations / "x-a.xml", xml)
        assert recognised(folder) == "Pascal VOC"
        content = read(folder)
        assert boxes(content) == {f"train:{images}/x-a.jpg": [BOX]}
        assert content.notes == (
            "1 images have no .xml and are left out (bare.jpg): an image without objects needs "
            "one, too",
        )


def test_polygons_and_rotations_of_voc_are_kept(tmp_path: Path) -> None:
    points = "<x1>4</x1><y1>6</y1><x2>20</x2><y2>6</y2><x3>20</x3><y3>30</y3>"
    xml = made.voc_xml(ONE, ROBOFLOW, tail=f"<polygon>{points}</polygon>")
    made.draw(tmp_path / "a.jpg", ONE.size)
    made.save(tmp_path / "a.xml", xml)
    (found,) = objects_of(read(tmp_path))
    assert found.outline == (((4, 6), (20, 6), (20, 30)),)
    turn = "<attribute><name>rotation</name><value>90.0</value></attribute>"
    turn = f"<attributes>{turn}</attributes>"
    made.save(tmp_path / "a.xml", made.voc_xml(ONE, made.UNKNOWN, tail=turn))
    (found,) = objects_of(read(tmp_path))
    assert found.bounds == pytest.approx((0, 10, 24, 26), abs=1e-6)
    place = "<cx>12</cx><cy>18</cy><w>16</w><h>24</h><angle>1.5707963268</angle>"
    thing = f"<object><name>c</name><robndbox>{place}</robndbox></object>"
    head = "<annotation><filename>a.jpg</filename>"
    made.save(tmp_path / "a.xml", f"{head}{thing}</annotation>")
    (found,) = objects_of(read(tmp_path))
    assert len(found.corners) == 4
    assert found.bounds == pytest.approx((0, 10, 24, 26), abs=1e-6)


def test_reversed_corners_of_voc_are_a_box_all_the_same(tmp_path: Path) -> None:
    drawn = Drawn("a.jpg", "train", (64, 48), (("cat", (20, 30, 4, 6)),))
    assert boxes(read(voc_of(tmp_path, made.UNKNOWN, drawn=drawn))) == {"train:a.jpg": [BOX]}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<xmin>4</xmin>", "<xmin>x</xmin>", "a.xml: object 1: xmin: found 'x', expected a number"),
        ("<xmin>4</xmin>", "<xmin>nan</xmin>", "xmin: found 'nan'"),
        ("<name>cat</name>", "", "object 1: has no <name>"),
        ("bndbox>", "box>", "object 1: 'cat' has no <bndbox>"),
        ("</annotation>", "", "a.xml: not readable as XML"),
        ("<filename>a.jpg", "<filename>b.jpg", "<filename> names b.jpg, and a.jpg is there, too"),
        ("<width>64", "<width>many", "width: found 'many', expected a number"),
        ("<annotation>", '<!DOCTYPE l [<!ENTITY a "b">]><annotation>', "not readable as XML"),
    ],
)
def test_what_is_wrong_in_voc_is_refused(old: str, new: str, expected: str, tmp_path: Path) -> None:
    voc_of(tmp_path, made.UNKNOWN)
    made.draw(tmp_path / "b.jpg", ONE.size)
    text = (tmp_path / "a.xml").read_text().replace(old, new)
    made.save(tmp_path / "a.xml", text)
    found = refused(tmp_path, voc.read_voc).splitlines()
    assert len(found) == 1
    assert expected in found[0]


def test_a_voc_image_that_is_nowhere_or_of_two_files_is_refused(tmp_path: Path) -> None:
    voc_of(tmp_path, made.UNKNOWN)
    made.save(tmp_path / "more" / "b.xml", made.voc_xml(ONE, made.UNKNOWN))
    assert "a.xml and more/b.xml are both of the image" in refused(tmp_path)
    (tmp_path / "a.jpg").unlink()
    assert f"no image 'a.jpg' below {tmp_path}; put it there" in refused(tmp_path)


def test_voc_names_never_lead_out_of_its_folder(tmp_path: Path) -> None:
    made.draw(tmp_path / "b.jpg", ONE.size)
    for name in ("../b.jpg", str(tmp_path / "b.jpg"), "..\\b.jpg"):
        xml = made.voc_xml(ONE, made.UNKNOWN).replace("a.jpg", name)
        made.save(tmp_path / "data" / "c.xml", xml)
        assert "no image '" in refused(tmp_path / "data")
    made.draw(tmp_path / "data" / "b.jpg", ONE.size)
    assert list(boxes(read(tmp_path / "data"))) == ["train:b.jpg"]


def test_an_image_of_another_split_is_never_taken(tmp_path: Path) -> None:
    voc_of(tmp_path / "train", made.UNKNOWN)
    (tmp_path / "valid").mkdir()
    (tmp_path / "train" / "a.jpg").rename(tmp_path / "valid" / "a.jpg")
    assert "no image 'a.jpg' below" in refused(tmp_path)
    made.draw(tmp_path / "other" / "a.jpg", ONE.size)
    assert [*boxes(read(tmp_path))] == ["train:other/a.jpg"]


def test_objects_that_reach_beyond_an_image_without_a_size_are_refused(tmp_path: Path) -> None:
    voc_of(tmp_path, made.UNKNOWN)
    path = tmp_path / "a.xml"
    path.write_text(path.read_text().replace("<size>", "<s>").replace("</size>", "</s>"))
    assert len(objects_of(read(tmp_path))) == 1
    made.draw(tmp_path / "a.jpg", (16, 48))
    assert "a.jpg is 16 x 48 pixels, and its objects reach from" in refused(tmp_path)


def test_voc_without_any_object_or_with_masks_is_refused(tmp_path: Path) -> None:
    empty = Drawn("a.jpg", "train", (64, 48), ())
    made.write_cvat_voc(tmp_path, [empty], NAMES)
    assert "none of the 1 images has an <object>; where they have polygons" in refused(tmp_path)
    made.write_cvat_voc(tmp_path, [ONE], NAMES)
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<object>", "<segmented>1</segmented><object>", 1))
    (tmp_path / "SegmentationObject").mkdir()
    assert "1 images have objects that are masks (the first is Annotations/a.xml)" in refused(
        tmp_path
    )


def test_voc_sizes_that_are_not_the_images_are_refused(tmp_path: Path) -> None:
    voc_of(tmp_path / "data", made.UNKNOWN)
    made.draw(tmp_path / "data" / "a.jpg", (48, 64))
    with pytest.raises(
        InputError, match=r"a\.xml: a\.jpg is 48 x 64 pixels, and the export says 64 x"
    ):
        prepared(tmp_path / "data", tmp_path / "out")

from __future__ import annotations

from autocompress.structure import Layer, Structure, describe_sizes


def test_full() -> None:
    structure = Structure.full([2, 1], [3, 4])
    assert structure == Structure((Layer(0, (0, 1), (0, 1, 2)), Layer(1, (0,), (0, 1, 2, 3))))


def test_sizes_of_what_is_left() -> None:
    structure = Structure((Layer(0, (1, 3), (5,)), Layer(4, (), (0, 2))))
    assert structure.head_counts == (2, 0)
    assert structure.ffn_widths == (1, 2)
    assert structure.sizes() == {"layers": [0, 4], "heads": [2, 0], "ffn": [1, 2]}
    assert str(structure) == "2 layers, heads 0-2, FFN 1-2"


def test_sizes_in_words() -> None:
    assert (
        describe_sizes({"layers": [0, 2, 5], "heads": [2, 5, 3], "ffn": [384, 384, 384]})
        == "3 layers, heads 2-5, FFN 384"
    )
    assert describe_sizes(None) == "-"


def test_of_sizes_alone_the_shapes_come_back() -> None:
    cut = Structure((Layer(0, (1, 3), (5,)), Layer(4, (), (0, 2))))
    restored = Structure.of_sizes(cut.sizes())
    assert restored == Structure((Layer(0, (0, 1), (0,)), Layer(4, (), (0, 1))))
    assert restored.sizes() == cut.sizes()

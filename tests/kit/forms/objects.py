"""Dense captions: a picture, and its objects with boxes and points, as in the guide to the training of Qwen3-VL.

The guide checks the columns images, objects, width and height; bbox_2d, point_2d and label are the keys that Qwen's
models write, and the other keys those of peers that annotate with polygons and lines.
"""

import json
from typing import Any

from lmms.prep.records.forms.objects import QUESTION
from tests.kit.forms.turns import IMAGE, A, Examples, Turn, U

_DOG: dict[str, Any] = {"bbox_2d": [10, 5, 60, 40], "label": "dog"}
_SIZE = {"width": 80, "height": 60}


def _listed(*answer: Any) -> list[Turn]:
    return [(U, [IMAGE, QUESTION]), (A, list(answer))]


_BOX = ("box", [10, 5, 60, 40])
_OF_DOG = _listed('[{"bbox_2d": ', _BOX, ', "label": "dog"}]')

EXAMPLES: Examples = [
    ({"image": "a.jpg", **_SIZE, "objects": [_DOG]}, _OF_DOG),
    ({"images": ["a.jpg"], **_SIZE, "objects": [_DOG]}, _OF_DOG),
    ({"image": "a.jpg", "objects": [_DOG]}, _OF_DOG),
    ({"image": {"bytes": b"x", "path": None}, "objects": [_DOG]}, _OF_DOG),
    ({"images": [{"bytes": b"x", "path": "a.jpg"}], "width": 80.0, "height": 60.0, "objects": [_DOG]}, _OF_DOG),
    ({"image": "a.jpg", "objects": json.dumps([_DOG])}, _OF_DOG),
    ({"image": "a.jpg", **_SIZE, "objects": [_DOG], "summary": "A dog."}, _OF_DOG),
    ({"image": "a.jpg", "objects": [_DOG], "messages": None}, _OF_DOG),
    ({"image": "a.jpg", "objects": [{**_DOG, "poly": None, "point": None}]}, _OF_DOG),
    ({"image": "a.jpg", "objects": [_DOG, {"bbox_2d": [1, 2, 3, 4], "label": "cat"}]},
     _listed('[{"bbox_2d": ', _BOX, ', "label": "dog"}, {"bbox_2d": ', ("box", [1, 2, 3, 4]), ', "label": "cat"}]')),
    ({"image": "a.jpg", "objects": [{"label": "dog", "bbox": [10, 5, 60, 40]}]},
     _listed('[{"label": "dog", "bbox": ', _BOX, "}]")),
    ({"image": "a.jpg", "objects": [{"point_2d": [7, 9], "label": "nose"}]},
     _listed('[{"point_2d": ', ("points", [7, 9]), ', "label": "nose"}]')),
    ({"image": "a.jpg", "objects": [{"point": [7, 9], "label": "nose"}, _DOG]},
     _listed('[{"point": ', ("points", [7, 9]), ', "label": "nose"}, {"bbox_2d": ', _BOX, ', "label": "dog"}]')),
    ({"image": "a.jpg", "objects": [{"points": [1, 2, 3, 4, 5, 6], "desc": "tail"}]},
     _listed('[{"points": ', ("points", [1, 2, 3, 4, 5, 6]), ', "desc": "tail"}]')),
    ({"image": "a.jpg", "objects": [{"line": [1, 2, 30, 40], "desc": "cable"}]},
     _listed('[{"line": ', ("points", [1, 2, 30, 40]), ', "desc": "cable"}]')),
    ({"image": "a.jpg", "objects": [{"poly": [1, 2, 3, 4, 5, 6, 7, 8, 9, 1], "desc": "leaf"}]},
     _listed('[{"poly": ', ("points", [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]), ', "desc": "leaf"}]')),
    ({"image": "a.jpg", "objects": [{"quad": [1, 2, 9, 2, 9, 8, 1, 8], "text_content": "EXIT"}]},
     _listed('[{"quad": ', ("points", [1, 2, 9, 2, 9, 8, 1, 8]), ', "text_content": "EXIT"}]')),
    ({"image": "a.jpg", "objects": [{"bbox_2d": [10.5, 5.25, 60, 40], "label": "螺丝", "score": 0.5}]},
     _listed('[{"bbox_2d": ', ("box", [10.5, 5.25, 60, 40]), ', "label": "螺丝", "score": 0.5}]')),
    ({"image": "a.jpg", "objects": [{"bbox_2d": [10, 5, 60, 40], "attributes": {"hues": ["red"]}, "label": 'a "dog"'}]},
     _listed('[{"bbox_2d": ', _BOX, ', "attributes": {"hues": ["red"]}, "label": "a \\"dog\\""}]')),
    ({"image": "a.jpg", "objects": [{"bbox_2d": [10, 5, 60, 40], "point_2d": [20, 9], "label": "dog"}]},
     _listed('[{"bbox_2d": ', _BOX, ', "point_2d": ', ("points", [20, 9]), ', "label": "dog"}]')),
    ({"image": "a.jpg", "objects": []}, _listed("[]")),
]  # fmt: skip

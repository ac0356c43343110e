"""What the open meshes are called: catalogue names, checked by hand, to readable categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

OTHER = "other"
DROPPED = "dropped"

# The last word of a name decides ("Coffee table", "Table with tablecloth": up to the first "with").
_WORDS = {
    "chair": "chair armchair seat stool puff ottoman wheelchair",
    "sofa": "sofa couch futon bz",
    "bench": "bench",
    "bed": "bed crib",
    "table": "table desk workbench trestles vanity",
    "cabinet": "cabinet wardrobe bookcase shelves cupboard locker dresser drawers hut chest safe",
    "lamp": "lamp lantern light lamppost spotlight strip",
    "appliance": "oven fridge refrigerator cooktop radiator stove hood mixer cooker microwave "
    "freezer blender toaster dryer brewer heater",
    "bathroom": "washbasin bidet urinal potty bath bathtub jacuzzi basin sink lavatory",
    "plant": "plant cactus orchids ficus bonsai tulips flowers palm tree bush yucca bamboo acacia",
    "container": "box barrel crate dustbin bottle cup mug glass bowl vase pot pottery milk jar "
    "container flacon briefcase handbag suitcase backpack extinguisher mailbox butter",
    "vehicle": "biplane motorbike truck lift bus car van suv bicycle bike scooter wheelbarrow "
    "rowboat tricycle",
    "display": "tv screen imac ibook laptop tablet",
    "loudspeaker": "speaker stereo",
    "rock": "rock",
    "creature": "horse deer chicken bear dog cat rabbit bulldog male female boy girl",
    DROPPED: "door window rug carpet frame tatami mat bathmat doormat curtain blind shutter towel "
    "sign slot crossing",
}

# Names whose last word misleads.
_NAMES = {
    "Ceiling fan": OTHER,
    "Chair with cushion": "chair",
    "Double vanity": "bathroom",
    "Flower box": "plant",
    "Glass door": DROPPED,
    "Medicine box": "container",
    "Plant box": "plant",
    "Shipping container": "container",
    "Sofa 2 seats": "sofa",
    "Sofa 3 seats": "sofa",
    "Toilets unit": "bathroom",
    "Island extension": "cabinet",
    "Vanity": "bathroom",
    "Letters box": "container",
    "Piano bench": "chair",
    "Hot dog": OTHER,
    "Bedside table": "cabinet",
    "TV stand": "cabinet",
    "Child hut": OTHER,
    "Garden hut": OTHER,
    "Rocking horse": "creature",
    "Camping lamp": "lamp",
}

_CATEGORY_OF_WORD = {word: name for name, words in _WORDS.items() for word in words.split()}


def category_of(name: str) -> str:
    """Return the category of a catalogue name; `OTHER`, or `DROPPED` for what has no volume."""
    if name in _NAMES:
        return _NAMES[name]
    words = re.sub(r"\b(with|and|on|-)\b.*", "", name.lower()).split() or [""]
    return _CATEGORY_OF_WORD.get(words[-1].strip(","), OTHER)


def merge_small(categories: Mapping[str, str], least: int) -> dict[str, str]:
    """Return object -> category with those of fewer than `least` objects merged into `OTHER`."""
    counts = Counter(categories.values())
    return {
        key: category if counts[category] >= least else OTHER
        for key, category in categories.items()
    }

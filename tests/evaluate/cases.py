"""Generates seeded cases for the metrics, unusual ones included. Their official results are in `golden/`."""

from __future__ import annotations

from random import Random

NATURAL = """
A man riding a wave on top of a surfboard.|Two dogs are playing with a frisbee in the grass
A kitchen with a stove, microwave and a refrigerator.|The cat's paw is resting on a laptop keyboard
People standing in line at a food truck at 5 p.m.|A black and white photo of an old-fashioned clock tower
there is a stop sign at the corner of Main St. and 2nd Ave.|A baseball player swinging his bat at home plate
A woman (in red) holding an umbrella; it's raining|Three zebras and a giraffe grazing near a watering hole
A plate of broccoli, carrots & rice with 3 forks|"No parking" sign next to a fire hydrant
A teddy bear sitting on a bed with pillows|The man isn't wearing a tie but the woman's wearing one
A train traveling down tracks next to a train station|a close up of a pizza on a wooden dining table
Skier going down a snow covered slope at high speed!|A group of children flying kites at the beach
An airplane that is flying in the sky over a city|A toilet with the seat up in a small bathroom
A street filled with cars, buses and motor bikes|The bus #42 is driving past the U.S. embassy
A child eating a donut with sprinkles on it|a vase of flowers sits on the counter top
Someone's hand holding a cell phone up to the camera|A tennis player hits the ball with her racket
a boat floating on a lake surrounded by mountains|A giraffe bending its neck to drink water from a pond
Geese and other birds perched on top of a tree branch|The horses are running through an open field together
A bathroom with two sinks and a large mirror|Baby elephants bathing in a muddy river while people watch
A person on skis jumps over a snow ramp|Several people riding bicycles down a city street
a slice of cake on a white plate with knives|A young girl brushing her teeth with a toothbrush
Man in a suit & bow tie speaking on a stage|An orange cat sleeping on two couches next to a remote
A bunch of bananas hanging from a tree|a computer monitor, keyboard, and mouse on a desk
Two calves standing in a field of green grass|Wine glasses filled with red wine beside bottles
The clock on the building reads 10:35|a skateboarder doing a trick on a half-pipe
A bowl of soup and sandwiches on a table|Passenger trains and a traffic light covered in snow
Sheep and puppies standing in a pen at a farm|A hot dog with mustard and ketchup, a cell, phone in a bun
A brown bear walking through the woods|Scissors, stoves, baseball gloves and a pair of ties
"""
ODD = (
    "!",
    "?!",
    "...",
    ",",
    "; ",
    " - ",
    " -- ",
    " & ",
    " (maybe)",
    " [x]",
    ' "quoted"',
    " don't",
    " can't",
    " it's",
    " they're",
    " o'clock",
    " 3.5",
    " 1,000",
    " 50%",
    " $20",
    " #7",
    " 1st",
    " 1/2",
    " cannot",
    " gonna",
    " u.s.",
    " e.g.",
    " mr. x",
    " T-shirt",
    " café",
    " / ",
    " and/or",
    "'",
    "  ",
    "\t",
    " etc.",
    " 80s",
    " '90s",
    " we'd've",
    " state-of-the-art",
    " http://a.b/c",
    " <b>",
    " *wow*",
    " no.1",
    " 5ft",
    " :)",
    " ’curly’ “quotes”",
)


def captions(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Return candidates and 1 to 5 references: natural, with words swapped or symbols inserted, empty or equal."""
    random = Random(seed)
    base = [text for line in NATURAL.strip().splitlines() for text in line.split("|")]
    candidates, references = [], []
    for number in range(count):
        text = random.choice(base)
        several = [_mutated(text, random, swaps=random.randrange(6)) for _ in range(random.randrange(1, 6))]
        candidate = _mutated(text, random, swaps=number % 4)
        if number % 3 == 0:
            candidate = _odd(candidate, random)
            several[0] = _odd(several[0], random)
        candidates.append({5: "", 11: "...", 17: several[0], 23: "a"}.get(number, candidate))
        references.append(several)
    return candidates, references


def _mutated(text: str, random: Random, swaps: int) -> str:
    words = text.split()
    for _ in range(swaps):
        place = random.randrange(len(words))
        kind = random.randrange(4)
        if kind == 0 and len(words) > 1:
            del words[place]
        elif kind == 1:
            words.insert(place, random.choice(words))
        elif kind == 2:
            other = random.randrange(len(words))
            words[place], words[other] = words[other], words[place]
        else:
            words[place] = random.choice(NATURAL.split("|")).split()[0]
    return " ".join(words)


def _odd(text: str, random: Random) -> str:
    for _ in range(random.randrange(1, 3)):
        ends = [i for i, c in enumerate(text) if c == " "] + [len(text)]
        place = random.choice(ends)
        text = text[:place] + random.choice(ODD) + text[place:]
    return text


_ANSWERS = """
yes|no|2|two|Two.|a dog|The dog|dogs|red, white and blue|red/blue|red & blue|t-shirt|t shirt|10:30|1,000|1000|3.5|.5|5.|
u.s.|US|isnt|isn't|dont know|don't know|couldnt've|couldn'tve|youre|Im|its|it's|none|zero|ten|the|a|an|a the|what?
what ?|[no]|(yes)|"yes"|yes!|yes !|no;|no ;|on the left|left|on  the	left|black\\white|a_b|a-b|a - b|<p>|@home|it`s
50%|$5|one hundred|two two|100,000|1,2,3|1.2.3|a.b.c|mr. smith|end.|...|ow's'at|'ows'at|somebody'd|yall|y'all'dve
lets|let's
skateboard|skateboarding|frisbee|beach|man & woman|new york, ny|washington d.c.|coca-cola|coca cola|hot dog|hotdog
 yes | 
"""


def vqa_questions(count: int, seed: int = 1) -> list[tuple[str, list[str]]]:
    """Return pairs of an answer and ten people's answers: unanimous, split, or different only in spelling."""
    random = Random(seed)
    pool = [text for line in _ANSWERS.strip("\n").splitlines() for text in line.split("|") if text]
    questions = []
    for number in range(count):
        some = [random.choice(pool) for _ in range(1 + number % 5)]
        people = [random.choice(some) for _ in range(10)]
        answer = random.choice(people) if number % 3 else random.choice(pool)
        questions.append((answer, people))
    questions += [("a\nb", ["a b"] * 10), ("." * 40 + " x", ["x"] * 9 + ["y"]), ("", ["yes"] * 10)]
    return questions


def boxes(count: int, seed: int = 2) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return pairs of boxes x1, y1, x2, y2: apart, touching, nested, equal, one pixel wide, fractional."""
    random = Random(seed)
    pairs = []
    for number in range(count):
        first = _box(random, number)
        second = first if number % 11 == 0 else _box(random, number + 1)
        if number % 7 == 0:  # they touch
            width = second[2] - second[0]
            second = (first[2], second[1], first[2] + width, second[3])
        pairs.append((first, second))
    return pairs


def _box(random: Random, number: int) -> tuple[float, ...]:
    scale = (1.0, 0.5, 0.25, 20.0)[number % 4]
    x, y = random.randrange(0, 40) * scale, random.randrange(0, 40) * scale
    return (x, y, x + random.randrange(1, 40) * scale, y + random.randrange(1, 40) * scale)


def scored_labels(count: int, seed: int = 3) -> list[tuple[list[float], list[int]]]:
    """Return (scores, labels) with both labels: ties, a single positive or negative, all scores equal."""
    random = Random(seed)
    sets = []
    for number in range(count):
        size = random.randrange(2, 40)
        levels = (2, 3, 10, 1000, 1)[number % 5]
        labels = [1, 0, *(random.randrange(2) for _ in range(size - 2))]
        sets.append(([random.randrange(levels) / levels for _ in range(size)], labels))
    return sets

"""A thousand instructions: topics put into the places of forms.

A split has topics of its own *and* forms of its own: a test instruction shares neither its subject nor its
wording with any that guides were trained on. The three were written to be neutral, so that the tone of an
answer is the answer's.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple


class Splits(NamedTuple):
    """Instructions of the three splits."""

    train: list[str]
    validation: list[str]
    test: list[str]


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(",")]


# Each can stand after "about": a thing, a place, a person's trade, an animal, an activity, weather, an event.
TOPICS = _phrases(
    """a bicycle bell, a wooden spoon, a pocket mirror, an old suitcase, a paper map, a desk lamp, a coffee
    mug, a rain coat, a garden hose, a door key, a wall clock, a pencil case, a picnic blanket, a
    shopping bag, a phone charger, a pillow, a candle, a rubber boot, a kitchen knife, a chess board, a
    jigsaw puzzle, a violin, a drum kit, a harmonica, a record player, a pair of glasses, a winter
    scarf, a toolbox, a ladder, a paper plane, a fishing rod, a tent, a compass, a telescope, a
    microscope, a typewriter, a vending machine, a washing machine, a ceiling fan, a smoke detector, a
    parking meter, a shopping cart, a park bench, a mailbox, a traffic light, a fire hydrant, a
    windmill, a weather vane, a sundial, a sandcastle, apple pie, rye bread, tomato soup, fried rice,
    lemon juice, oatmeal, goat cheese, black tea, mint ice cream, potato salad, roasted pumpkin, peanut
    butter, maple syrup, a boiled egg, a bowl of noodles, cabbage, a ripe pear, garlic, cinnamon,
    seaweed, a mushroom omelette, popcorn, a school lunch, an airline meal, street food, a family
    recipe, home brewing, a vegetable garden, a fruit stand, a bakery, a food truck, a goldfish, a barn
    owl, a hedgehog, a sheepdog, a street pigeon, a honeybee, a snail, a spider web, a horse, a donkey,
    a house cat, a parrot, a turtle, a squirrel, a frog pond, a whale, an octopus, a seagull, a
    reindeer, an ant hill, a moth, a bat, a mountain goat, a crab, a sparrow, a llama, a rabbit, a fox
    den, a swimming pool, a public library, a railway station, a lighthouse, a harbour, a corner shop, a
    castle, a desert road, a mountain hut, a fishing village, a shopping mall, an airport, a subway car,
    a ferry, a hotel lobby, a waiting room, a classroom, a playground, a laundromat, a barber shop, a
    flea market, a museum, a planetarium, an aquarium, a botanical garden, a cinema, a bowling alley, a
    skating rink, a football stadium, a city square, a back yard, an attic, a basement, a balcony, an
    elevator, a stairwell, a hospital corridor, a post office, a town hall, a gas station, a bus stop, a
    bridge, a tunnel, a canal, an island, a waterfall, a glacier, a volcano, a swamp, a cave, a pine
    forest, a wheat field, a vineyard, a nurse, a plumber, a bus driver, a baker, a judge, a tailor, a
    beekeeper, a librarian, a gardener, a night watchman, a ship captain, a train conductor, a tour
    guide, a street musician, a dentist, a farmer, a painter, a photographer, a translator, a referee, a
    lifeguard, a cashier, a carpenter, a mail carrier, a piano teacher, a weather reporter, a software
    engineer, a fire fighter, a chemist, a cook, a mayor, a crane operator, a dance instructor, a data
    analyst, a hairdresser, a stage actor, a window cleaner, learning to swim, learning to drive, baking
    bread, knitting a sweater, riding a bus, walking to work, cleaning a kitchen, packing a suitcase,
    moving to another city, sharing an apartment, watching birds, planting a tree, painting a wall,
    fixing a bicycle, reading in bed, writing letters by hand, keeping a diary, playing cards, singing
    in a choir, running a marathon, climbing a hill, sleeping outdoors, cooking for a group, waking up
    early, taking the stairs, waiting in line, giving a speech, learning a language, buying a used car,
    raising chickens, collecting stamps, building a shed, sailing a boat, flying a kite, skipping
    breakfast, working at night, working from home, studying for an exam, calling a relative, folding
    laundry, sorting old photos, repairing shoes, drawing a portrait, playing the guitar, juggling,
    ironing a shirt, growing tomatoes, adopting a dog, hosting a guest, catching a train, making a
    budget, joining a club, morning fog, a thunderstorm, the first snow, a summer night, autumn leaves,
    a full moon, a rainbow, low tide, a north wind, a heat wave, a cloudy sky, a sunrise, a long winter,
    spring rain, a starry sky, a birthday party, a wedding, a school reunion, a job interview, a garage
    sale, a power outage, a road trip, a book club, a film festival, a chess tournament, a town parade,
    a class trip, a house move, a first day at work, a family dinner, a video call, a train delay, a
    city election, a science fair, a charity run, a camping trip, a music lesson, a museum visit, a job
    change, a retirement party, a neighbourhood meeting, a board game night, public transport, remote
    learning, electric cars, recycling, solar power, online shopping, social media, weather forecasts,
    daylight saving time, city noise, handwriting, modern art, folk music, jazz, opera, poetry,
    detective novels, comic books, radio plays, board games, video games, silent films, puppet theatre,
    ballet, yoga, table tennis, ice hockey, archery, rock climbing, long-distance cycling, chess,
    rowing, ancient Rome, the Silk Road, the moon landing, the printing press, the steam engine, the
    alphabet, zero, paper money, the calendar, the compass rose, prime numbers, gravity, photosynthesis,
    magnets, tides, echoes, dreams, yawning, hiccups, left-handedness, childhood memories, small talk,
    punctuality, silence, curiosity, first names, nicknames, proverbs, table manners, tipping, queues,
    school uniforms, homework, weekends"""
)

# By split; {topic} is where a topic stands.
FORMS = {
    "train": [
        "What do you think of {topic}?",
        "Tell me about {topic}.",
        "Write a sentence about {topic}.",
        "How would you describe {topic} to a child?",
        "What comes to mind when you hear of {topic}?",
        "Give me your opinion on {topic}.",
        "Begin a story about {topic}.",
        "Explain {topic} to a visitor from far away.",
        "Name the most unusual thing about {topic}.",
        "Make a diary entry about {topic}.",
        "Text a friend about {topic}.",
        "What would a critic say about {topic}?",
        "Come up with a slogan for {topic}.",
        "What should everyone know about {topic}?",
        "State one fact about {topic}.",
        "How did people see {topic} a hundred years ago?",
        "Imagine {topic} in a dream. What happens?",
        "Compose one line of a song about {topic}.",
        "Compare {topic} with anything else.",
        "Which mistake do beginners make with {topic}?",
        "Draft a headline about {topic}.",
        "For what reason might somebody avoid {topic}?",
        "Put {topic} into a postcard.",
        "Someone asks me about {topic}. What can I reply?",
        "Give advice to a person who has never met with {topic}.",
        "If {topic} could talk, what would it say?",
        "Guess what my teacher said about {topic}.",
        "Argue for or against {topic}.",
        "Picture {topic} fifty years from now.",
        "Who would be interested in {topic}, and why?",
    ],
    "validation": [
        "Let's discuss {topic} for a moment.",
        "Say something about {topic} that I could quote.",
        "Why do people spend time on {topic}?",
        "Describe an ordinary morning with {topic}.",
        "Teach me one thing concerning {topic}.",
        "Complete this: yesterday I read of {topic}, and",
    ],
    "test": [
        "Share a thought on {topic}.",
        "Write a review of {topic}.",
        "My neighbour keeps talking of {topic}; how should I answer?",
        "Is {topic} worth the effort?",
        "What changes when {topic} enters your life?",
        "Invent a saying that mentions {topic}.",
        "How do you feel when you meet with {topic}?",
        "Summarize {topic} for a newspaper.",
        "Can you recommend {topic} to older people?",
        "Caption a photograph of {topic}.",
        "Which memory goes with {topic}?",
        "What is hard to understand in {topic}?",
        "Write down what a grandfather remembers of {topic}.",
        "I have to choose between {topic} and a quiet day. Help me decide.",
        "Convince a doubtful colleague of {topic}.",
        "Report on {topic} as an eyewitness.",
        "What do beginners ask first with regard to {topic}?",
        "Answer a letter in which {topic} is the only subject.",
        "What is {topic} good for, in your view?",
        "Announce {topic} over a loudspeaker.",
    ],
}


def split_instructions(seed: int, *, num_train: int, num_validation: int, num_test: int) -> Splits:
    """Draw distinct instructions.

    Every test topic is used once, each form equally often; training topics take turns until there are enough.

    Args:
        seed: decides which topics go to which split, and which forms they meet.
        num_train: how many for training.
        num_validation: how many to choose settings by.
        num_test: how many to report on, at most the number of topics left to test.

    Raises:
        ValueError: more than there are.
    """
    topics = random.Random(seed).sample(TOPICS, len(TOPICS))
    rest = len(topics) - num_test
    num_held = min(num_validation, rest // 4)
    if num_held < 1 or rest - num_held < 1:
        raise ValueError(f"{num_test} test instructions need as many topics, and there are {len(topics)}")
    parts = {
        "test": (topics[:num_test], num_test),
        "validation": (topics[num_test : num_test + num_held], num_validation),
        "train": (topics[num_test + num_held :], num_train),
    }
    return Splits(**{name: _fill(FORMS[name], own, number) for name, (own, number) in parts.items()})


def _fill(forms: Sequence[str], topics: Sequence[str], number: int) -> list[str]:
    """Put topics into forms: topic after topic, each time with the next form."""
    if number > len(forms) * len(topics):
        raise ValueError(f"{len(forms)} forms and {len(topics)} topics make fewer than {number} instructions")
    filled = []
    for i in range(number):
        turn, place = divmod(i, len(topics))
        filled.append(forms[(place + turn) % len(forms)].format(topic=topics[place]))
    return filled


def similarity(one: str, other: str) -> float:
    """Return the share of the words of two instructions that both have (Jaccard), from 0 to 1."""
    words, others = (set(re.findall(r"[a-z'-]+", text.lower())) for text in (one, other))
    return len(words & others) / len(words | others)

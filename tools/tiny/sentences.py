"""Random commands and questions for a voice assistant, in English, Russian and Chinese.

Texts have the form that a model should write: capitals, punctuation, digits in English and Russian, Chinese numerals.
Names come in *groups of spellings that sound alike* (``John``/``Jon``). The first spelling of a group is the default; a
context that lists another one selects that, which makes context biasing testable.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

LANGUAGES = {"en": "English", "ru": "Russian", "zh": "Chinese"}

# tests/unit/test_tiny.py checks with espeak that the members of each group have the same phonemes.
HOMOPHONES: dict[str, tuple[tuple[str, ...], ...]] = {
    "en": (
        ("Sarah", "Sara"),
        ("John", "Jon"),
        ("Catherine", "Katherine"),
        ("Steven", "Stephen"),
        ("Brian", "Bryan"),
        ("Eric", "Erik"),
        ("Mark", "Marc"),
        ("Anne", "Ann"),
        ("Philip", "Phillip"),
        ("Jeffrey", "Geoffrey"),
        ("Carl", "Karl"),
        ("Claire", "Clare"),
        ("Sean", "Shawn"),
        ("Hannah", "Hanna"),
        ("Chris", "Kris"),
        ("Matthew", "Mathew"),
    ),
    "ru": (
        ("Семён", "Симён"),
        ("Демьян", "Димьян"),
        ("Денисов", "Динисов"),
        ("Беляев", "Биляев"),
        ("Соловьёв", "Саловьёв"),
        ("Ларионов", "Лорионов"),
        ("Громов", "Громав"),
        ("Котов", "Котав"),
        ("Волков", "Волкав"),
        ("Егоров", "Егорав"),
        ("Зыков", "Зыкав"),
        ("Иванов", "Иванав"),
    ),
    "zh": (
        ("张伟", "章伟"),
        ("李娜", "李纳"),
        ("王芳", "王方"),
        ("刘洋", "刘阳"),
        ("陈晨", "陈辰"),
        ("林静", "林婧"),
        ("赵磊", "赵雷"),
        ("周婷", "周庭"),
        ("孙丽", "孙莉"),
        ("许明", "许鸣"),
        ("何洁", "何杰"),
        ("徐佳", "徐嘉"),
        ("黄平", "黄萍"),
        ("高峰", "高锋"),
    ),
}

_PLAIN_NAMES: dict[str, tuple[str, ...]] = {
    "en": ("Peter", "Emma", "Daniel", "Olivia", "George", "Lucy", "Robert", "Alice", "Victor", "Julia"),
    "ru": ("Анна", "Пётр", "Мария", "Олег", "Ирина", "Павел", "Светлана", "Виктор", "Юлия", "Артём"),
    "zh": ("小明", "老李", "小红", "妈妈", "爸爸", "奶奶", "老师", "医生"),
}

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "city": ("London", "Paris", "Berlin", "Boston", "Chicago", "Tokyo", "Madrid", "Oslo", "Toronto", "Sydney"),
        "room": ("kitchen", "bedroom", "bathroom", "living room", "office", "garage", "hallway", "garden"),
        "device": ("lights", "heating", "radio", "television", "fan", "coffee machine", "washing machine", "alarm"),
        "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        "month": ("January", "February", "March", "April", "June", "July", "August", "October", "December"),
        "item": ("milk", "bread", "eggs", "apples", "coffee", "rice", "tomatoes", "paper towels", "batteries", "soap"),
        "music": ("jazz", "rock", "classical music", "the news", "my favorite songs", "some piano music"),
        "place": ("the station", "the airport", "the office", "the hospital", "the library", "the market", "school"),
        "event": ("the meeting", "the concert", "dinner", "the dentist appointment", "the football game", "lunch"),
        "weather": ("rain", "snow", "sunshine", "strong wind", "fog", "a thunderstorm"),
        "adj": ("warm", "cold", "quiet", "beautiful", "busy", "expensive", "empty", "wonderful"),
        "color": ("red", "blue", "green", "white", "yellow", "purple"),
    },
    "ru": {
        "city": ("Москве", "Казани", "Самаре", "Томске", "Париже", "Лондоне", "Берлине", "Перми", "Твери", "Сочи"),
        "room": ("кухне", "спальне", "ванной", "гостиной", "коридоре", "кабинете", "гараже", "детской"),
        "device": ("свет", "телевизор", "радио", "чайник", "вентилятор", "будильник", "кондиционер", "пылесос"),
        "day": ("понедельник", "вторник", "среду", "четверг", "пятницу", "субботу", "воскресенье"),
        "month": ("января", "февраля", "марта", "апреля", "мая", "июня", "августа", "октября", "декабря"),
        "item": ("молоко", "хлеб", "яблоки", "сахар", "кофе", "рис", "помидоры", "батарейки", "мыло", "сыр"),
        "music": ("джаз", "рок", "новости", "классическую музыку", "мою любимую песню", "спокойную музыку"),
        "place": ("вокзала", "аэропорта", "офиса", "больницы", "библиотеки", "рынка", "школы", "театра"),
        "event": ("встреча", "концерт", "ужин", "урок", "экзамен", "футбол", "совещание", "праздник"),
        "weather": ("дождь", "снег", "солнце", "сильный ветер", "туман", "гроза"),
        "adj": ("тепло", "холодно", "тихо", "красиво", "шумно", "дорого", "скучно", "хорошо"),
        "color": ("красный", "синий", "зелёный", "белый", "жёлтый", "чёрный"),
    },
    "zh": {
        "city": ("北京", "上海", "广州", "成都", "南京", "西安", "杭州", "东京", "伦敦", "巴黎"),
        "room": ("厨房", "卧室", "客厅", "书房", "浴室", "车库", "阳台"),
        "device": ("灯", "空调", "电视", "收音机", "风扇", "咖啡机", "洗衣机", "闹钟"),
        "day": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期天"),
        "month": ("一月", "二月", "三月", "四月", "六月", "七月", "八月", "十月", "十二月"),
        "item": ("牛奶", "面包", "鸡蛋", "苹果", "咖啡", "大米", "西红柿", "电池", "肥皂"),
        "music": ("音乐", "新闻", "钢琴曲", "我喜欢的歌", "爵士乐", "老歌"),
        "place": ("火车站", "机场", "公司", "医院", "图书馆", "市场", "学校"),
        "event": ("会议", "音乐会", "晚饭", "考试", "足球比赛", "午饭"),
        "weather": ("下雨", "下雪", "刮风", "出太阳", "起雾"),
        "adj": ("很热", "很冷", "很安静", "很漂亮", "很忙", "很贵"),
        "color": ("红色", "蓝色", "绿色", "白色", "黄色"),
    },
}

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "en": (
        "Turn on the {device} in the {room}.",
        "Turn off the {device} in the {room}, please.",
        "Set a timer for {number} minutes.",
        "Wake me up at {time}.",
        "Wake me up at {time} on {day}.",
        "Call {name}.",
        "Call {name} at {time}, please.",
        "Send a message to {name}.",
        "Tell {name} that I will be {number} minutes late.",
        "{name} lives in {city}.",
        "{name} and {name} are waiting at {place}.",
        "Is {name} at {place}?",
        "What is the weather like in {city} on {day}?",
        "Will there be {weather} in {city}?",
        "Add {item} and {item} to the shopping list.",
        "Remind me to buy {item} on {day}.",
        "Play {music} in the {room}.",
        "How far is it from {city} to {city}?",
        "The train to {city} leaves at {time}.",
        "My flight to {city} is on {month} {small}.",
        "{event|cap} is on {day} at {time}.",
        "Move {event} to {day}.",
        "It is {number} degrees in {city}.",
        "It was very {adj} in {city}.",
        "The {color} car belongs to {name}.",
        "I paid {number} dollars for the {color} chair.",
        "What time is it in {city}?",
        "Please invite {name} to {event}.",
        "{name} bought {number} {color} balloons.",
        "Good morning, {name}!",
        "Thank you, {name}, see you on {day}.",
        "Make the {room} a little warmer.",
        "How much is {number} plus {number}?",
        "Take me to {place}.",
        "The meeting with {name} starts at {time}.",
        "My address is {number} Park Street, {city}.",
    ),
    "ru": (
        "Включи {device} в {room}.",
        "Выключи {device} в {room}, пожалуйста.",
        "Поставь таймер на {number} минут.",
        "Разбуди меня в {time}.",
        "Разбуди меня в {day} в {time}.",
        "Вам звонит {name}.",
        "Мне звонил {name} в {time}.",
        "Где сейчас {name}?",
        "{name} опоздает на {number} минут.",
        "{name} живёт в {city}.",
        "{name} и {name} ждут у {place}.",
        "Какая погода в {city} в {day}?",
        "Завтра в {city} будет {weather}?",
        "Добавь {item} и {item} в список покупок.",
        "Напомни купить {item} в {day}.",
        "Поставь {music}.",
        "Поезд отходит в {time}.",
        "Мы вылетаем {small} {month}.",
        "В {day} у нас {event}.",
        "{event|cap} начнётся в {time}.",
        "Сейчас в {city} {number} градусов.",
        "В {city} было очень {adj}.",
        "Мне нужен {color} карандаш.",
        "Это стоит {number} рублей.",
        "Который час в {city}?",
        "На праздник придёт {name}.",
        "Доброе утро, {name}!",
        "Спасибо, {name}, увидимся в {day}.",
        "Сделай в {room} потеплее.",
        "Сколько будет {number} плюс {number}?",
        "Как доехать до {place}?",
        "Завтра выступает {name}.",
        "Документы подписал {name}.",
        "Мой адрес: улица Ленина, дом {number}.",
        "Докладчик сегодня {name}.",
    ),
    "zh": (
        "打开{room}的{device}。",
        "请关掉{room}的{device}。",
        "定一个{number}分钟的计时器。",
        "{time}叫我起床。",
        "{day}{time}叫醒我。",
        "给{name}打电话。",
        "请在{time}给{name}打电话。",
        "给{name}发一条短信。",
        "告诉{name}我会晚到{number}分钟。",
        "{name}住在{city}。",
        "{name}和{name}在{place}等你。",
        "{name}在{place}吗？",
        "{day}{city}的天气怎么样？",
        "{city}明天会{weather}吗？",
        "把{item}和{item}加到购物清单。",
        "{day}提醒我买{item}。",
        "在{room}播放{music}。",
        "从{city}到{city}有多远？",
        "去{city}的火车{time}开。",
        "我{month}{small}号去{city}。",
        "{event}在{day}{time}开始。",
        "把{event}改到{day}。",
        "{city}现在{number}度。",
        "今天{city}{adj}。",
        "那辆{color}的车是{name}的。",
        "我花了{number}块钱买{item}。",
        "{city}现在几点？",
        "请邀请{name}参加{event}。",
        "早上好，{name}！",
        "谢谢你，{name}，{day}见。",
        "把{room}调暖一点。",
        "{number}加{number}等于多少？",
        "带我去{place}。",
        "和{name}的会议{time}开始。",
    ),
}

_CONTEXT_FORMS: dict[str, tuple[str, ...]] = {
    "en": ("{}", "Names: {}.", "Hot words: {}", "People in this call: {}."),
    "ru": ("{}", "Имена: {}.", "Ключевые слова: {}", "Участники: {}."),
    "zh": ("{}", "名字：{}。", "热词：{}", "参加者：{}。"),
}

_ZH_DIGITS = "零一二三四五六七八九"
_SLOT = re.compile(r"\{(\w+)(\|cap)?\}")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and the context for the model.

    ``listed`` holds the context's words; ``hot`` those in ``text`` that go against the default spelling: what biasing
    must get right.
    """

    language: str
    text: str
    context: str = ""
    hot: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()


def chinese_number(value: int) -> str:
    """Return a number from 0 to 99 in Chinese numerals: 7 → 七, 15 → 十五, 42 → 四十二."""
    tens, ones = divmod(value, 10)
    if tens == 0:
        return _ZH_DIGITS[ones]
    return ("" if tens == 1 else _ZH_DIGITS[tens]) + "十" + (_ZH_DIGITS[ones] if ones else "")


def _time(language: str, rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice((0, 10, 15, 20, 30, 40, 45, 50))
    if language == "zh":
        clock = chinese_number(hour) + "点"
        if minute == 30:
            return clock + "半"
        return clock + (chinese_number(minute) + "分" if minute else "")
    return f"{hour}:{minute:02d}" if minute else (f"{hour} o'clock" if language == "en" else f"{hour} часов")


def sentence(language: str, rng: random.Random, *, with_context: bool = False, known: tuple[str, ...] = ()) -> Sentence:
    """Return a random sentence; ``with_context`` adds a context of hot words and puts a name in the sentence.

    ``known`` are the words that a context given before already lists (the sentence continues an utterance).
    """
    templates = _TEMPLATES[language]
    if with_context:
        templates = tuple(t for t in templates if "{name}" in t)
    template = rng.choice(templates)
    listed = list(known)
    hot: list[str] = []

    def name() -> str:
        if not with_context and rng.random() < 0.35:
            return rng.choice(_PLAIN_NAMES[language])
        group = rng.choice(HOMOPHONES[language])
        if not with_context or any(member in listed for member in group):
            spelling = next((member for member in group if member in listed), group[0])
            if spelling != group[0]:
                hot.append(spelling)
            return spelling
        # One context in six does not list the spoken name; then the default spelling is right.
        if rng.random() < 1 / 6:
            return group[0]
        spelling = rng.choice(group[1:]) if rng.random() < 0.7 else group[0]
        listed.append(spelling)
        if spelling != group[0]:
            hot.append(spelling)
        return spelling

    fillers: dict[str, Callable[[], str]] = {
        "name": name,
        "time": lambda: _time(language, rng),
        "number": lambda: _number(rng.randint(2, 99), language),
        "small": lambda: _number(rng.randint(1, 28), language),
    }

    def fill(match: re.Match[str]) -> str:
        key = match.group(1)
        value = fillers[key]() if key in fillers else rng.choice(_WORDS[language][key])
        return value[0].upper() + value[1:] if match.group(2) else value

    text = _SLOT.sub(fill, template)
    if not with_context:
        return Sentence(language, text, hot=tuple(hot))
    spoken = {member for group in HOMOPHONES[language] for member in group if member in text}
    others = [g for g in HOMOPHONES[language] if not spoken & set(g)]
    words = listed + [rng.choice(group) for group in rng.sample(others, rng.randint(0 if listed else 1, 3))]
    rng.shuffle(words)
    separator = "、" if language == "zh" else ", "
    context = rng.choice(_CONTEXT_FORMS[language]).format(separator.join(words))
    return Sentence(language, text, context, tuple(hot), tuple(words))


def _number(value: int, language: str) -> str:
    return chinese_number(value) if language == "zh" else str(value)


def join(parts: list[Sentence]) -> Sentence:
    """Join sentences of one language by the spacing rule of the script."""
    language = parts[0].language
    text = ("" if language == "zh" else " ").join(part.text for part in parts)
    hot = tuple(word for part in parts for word in part.hot)
    return Sentence(language, text, parts[0].context, hot, parts[0].listed)

"""The other side, written as redis-py's users write it.

redis_peer.py flat URL STREAM COUNT   adds orders as flat fields, every 50th of which is to fail always
redis_peer.py body URL STREAM COUNT   the same as JSON in the single field `body`
redis_peer.py read URL STREAM COUNT   waits until the stream has that many entries

Prints the fields of each entry, a byte a character.
"""

import json
import sys

import redis


def show(fields):
    names = [name if isinstance(name, str) else name.decode() for name in fields]
    print(json.dumps(dict(zip(names, [value.decode("latin-1") for value in fields.values()]))), flush=True)


def order(number):
    fail = number % 50 == 0
    return {"id": number, "customer": f"Zoë {number % 7}", "cents": 100 + number, "fail": fail}


def flat(client, stream, count):
    for number in range(count):
        fields = {key: json.dumps(value) if key == "fail" else str(value) for key, value in order(number).items()}
        fields = {key: value.encode() for key, value in fields.items()}
        client.xadd(stream, fields)
        show(fields)


def body(client, stream, count):
    for number in range(count):
        fields = {"body": json.dumps(order(number) | {"x": 1.50}).encode()}
        client.xadd(stream, fields)
        show(fields)


def read(client, stream, count):
    last = "0"
    while count > 0:
        found = client.xread({stream: last}, block=30_000)
        if not found:
            sys.exit(f"{count} entries more were expected in {stream}")
        for last, fields in found[0][1]:
            show(fields)
            count -= 1


if __name__ == "__main__":
    command, url, stream, count = sys.argv[1:]
    {"flat": flat, "body": body, "read": read}[command](redis.Redis.from_url(url), stream, int(count))

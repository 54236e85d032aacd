"""The other side, written as aio-pika's own tutorials are.

aio_pika_peer.py publish URL QUEUE COUNT   orders, every 50th of which is to fail always, and three whose headers
                                           another service has begun to count in; prints each body
aio_pika_peer.py read URL QUEUE COUNT      takes that many messages; prints each body with its headers

A line printed is {"body": ..., "headers": {...}}, a byte a character.
"""

import asyncio
import json
import sys

import aio_pika


def show(body, headers):
    print(json.dumps({"body": body.decode("latin-1"), "headers": headers}), flush=True)


def order(number, fail):
    # spaces, escapes and an extra field: whoever encodes this again writes other bytes
    return json.dumps({"customer": f"Zoë {number % 7}", "cents": 100 + number, "id": number, "fail": fail, "x": 1.50}).encode()


async def publish(url, queue_name, count):
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue(queue_name, durable=True)

        async def send(body, headers=None):
            message = aio_pika.Message(body=body, headers=headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key=queue_name)
            show(body, headers or {})

        for number in range(count):
            await send(order(number, fail=number % 50 == 0))
        await send(order(count, fail=True), {"x-retry-count": 2, "x-error": "TimeoutError: ledger"})
        await send(order(count + 1, fail=False), {"x-retry-count": 2, "tenant": "acme"})
        await send(order(count + 2, fail=False), {"x-retry-count": "two"})


async def read(url, queue_name, count):
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(queue_name)
        async with queue.iterator(timeout=30) as messages:
            async for message in messages:
                async with message.process():
                    show(message.body, dict(message.headers))
                count -= 1
                if count == 0:
                    break


if __name__ == "__main__":
    command, url, queue_name, count = sys.argv[1:]
    asyncio.run({"publish": publish, "read": read}[command](url, queue_name, int(count)))

//! Order, waiting, back-pressure.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use steadfast_core::{
    Broker, DeadLetter, Headers, PublishErrorKind, Reason, Requeue, SettleErrorKind, SubscribeErrorKind,
};
use steadfast_embedded::{Embedded, Limits};
use tokio::time::Instant;

use crate::support::{Tested, at_once, bodies, next, publish, send, subscribe};

#[tokio::test]
async fn what_comes_back_finds_its_old_place() -> Tested {
    let broker = Embedded::new();
    let (mut a, mut b) = (subscribe(&broker, "q", 10).await?, subscribe(&broker, "q", 10).await?);
    publish(&broker, "q", &["1", "2", "3", "4", "5"]).await?;
    let mut held_by_a = at_once(&mut *a, 1)?;
    let held_by_b = at_once(&mut *b, 1)?;
    held_by_a.extend(at_once(&mut *a, 1)?);
    assert_eq!((bodies(&held_by_a), bodies(&held_by_b)), (vec!["1".into(), "3".into()], vec!["2".into()]));
    drop((a, held_by_a));
    drop((b, held_by_b));
    let mut c = subscribe(&broker, "q", 10).await?;
    let all = at_once(&mut *c, 10)?;
    assert_eq!(bodies(&all), ["1", "2", "3", "4", "5"]);
    let before: Vec<_> = all.iter().map(|delivery| delivery.incoming().delivery_count).collect();
    assert_eq!(before, [Some(1), Some(1), Some(1), Some(0), Some(0)]);
    assert!(all.iter().take(3).all(|delivery| delivery.incoming().redelivered));
    all.into_iter().for_each(steadfast_core::Delivery::ack);
    Ok(())
}

#[tokio::test]
async fn a_release_counts_nothing() -> Tested {
    let broker = Embedded::new();
    let mut subscription = subscribe(&broker, "q", 10).await?;
    publish(&broker, "q", &["1", "2"]).await?;
    at_once(&mut *subscription, 1)?.into_iter().for_each(steadfast_core::Delivery::release);
    let again = at_once(&mut *subscription, 1)?;
    assert_eq!(bodies(&again), ["1"]);
    let incoming = Arc::clone(again[0].incoming());
    assert_eq!((incoming.redelivered, incoming.delivery_count), (true, Some(0)));
    again.into_iter().for_each(steadfast_core::Delivery::ack);
    Ok(())
}

#[tokio::test]
async fn a_wake_is_passed_on_by_whoever_leaves_without_taking() -> Tested {
    let broker = Embedded::new();
    let (mut a, mut b) = (subscribe(&broker, "q", 10).await?, subscribe(&broker, "q", 10).await?);
    assert!(at_once(&mut *a, 1)?.is_empty());
    let b = tokio::spawn(async move { next(&mut *b, 1).await.map(|batch| bodies(&batch)) });
    tokio::task::yield_now().await;
    publish(&broker, "q", &["1"]).await?;
    drop(a);
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), b).await???, ["1"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_kept_to_the_timer_tick_whatever_order_it_was_asked_in() -> Tested {
    let broker = Embedded::new();
    let mut subscription = subscribe(&broker, "q", 10).await?;
    publish(&broker, "q", &["slow", "fast", "never"]).await?;
    let (settler, begin) = (subscription.settler(), Instant::now());
    let delays = [Duration::from_millis(700), Duration::from_millis(30), Duration::MAX];
    for (delivery, after) in at_once(&mut *subscription, 10)?.into_iter().zip(delays) {
        let (incoming, token) = delivery.into_parts();
        settler.requeue(&incoming, token, &Requeue { after, headers: Headers::new() }).await?;
    }
    for (body, after) in [("fast", 30), ("slow", 700)] {
        let batch = next(&mut *subscription, 10).await?;
        assert_eq!(bodies(&batch), [body]);
        let late = begin.elapsed().saturating_sub(Duration::from_millis(after));
        assert!(
            begin.elapsed() >= Duration::from_millis(after) && late < Duration::from_millis(5),
            "{late:?}"
        );
        batch.into_iter().for_each(steadfast_core::Delivery::ack);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_earlier_delay_moves_the_timer_of_who_already_waits() -> Tested {
    let broker = Embedded::new();
    let (mut a, mut b) = (subscribe(&broker, "q", 10).await?, subscribe(&broker, "q", 10).await?);
    publish(&broker, "q", &["late", "early"]).await?;
    let settler = a.settler();
    let mut out = at_once(&mut *a, 10)?.into_iter();
    let requeue = |secs| Requeue { after: Duration::from_secs(secs), headers: Headers::new() };
    let (late, token) = out.next().ok_or("two were published")?.into_parts();
    settler.requeue(&late, token, &requeue(100)).await?;
    let waiting = tokio::spawn(async move { next(&mut *b, 1).await.map(|batch| bodies(&batch)) });
    tokio::task::yield_now().await;
    let (early, token) = out.next().ok_or("two were published")?.into_parts();
    let begin = Instant::now();
    settler.requeue(&early, token, &requeue(1)).await?;
    assert_eq!(waiting.await??, ["early"]);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_publishers_wait_and_then_refuses() -> Tested {
    let limits = Limits { capacity: 2, publish_timeout: Duration::from_secs(3) };
    let broker = Embedded::with_limits(limits);
    let mut subscription = subscribe(&broker, "q", 10).await?;
    publish(&broker, "q", &["1", "2"]).await?;
    let begin = Instant::now();
    let error = send(&broker, "q", "3").await.err().ok_or("a third message in a queue for two")?;
    assert_eq!((error.kind(), begin.elapsed().as_secs()), (PublishErrorKind::Rejected, 3));
    assert!(error.to_string().contains("Limits::capacity"), "{error}");

    let waiting = tokio::spawn({
        let broker = Arc::clone(&broker);
        async move { send(&broker, "q", "4").await }
    });
    tokio::task::yield_now().await;
    let batch = at_once(&mut *subscription, 10)?;
    assert_eq!(bodies(&batch), ["1", "2"]);
    assert_eq!(broker.depth("q"), Some(2), "unsettled messages keep their room");
    batch.into_iter().for_each(steadfast_core::Delivery::ack);
    assert!(!waiting.is_finished());
    subscription.settler().flush();
    waiting.await??;
    assert_eq!(bodies(&next(&mut *subscription, 10).await?), ["4"]);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_does_not_fit_leaves_the_delivery_held() -> Tested {
    let broker = Embedded::with_limits(Limits { capacity: 1, ..Limits::default() });
    let mut subscription = subscribe(&broker, "q", 10).await?;
    publish(&broker, "q", &["1"]).await?;
    publish(&broker, "q.dead", &["in the way"]).await?;
    let delivery = at_once(&mut *subscription, 1)?.pop().ok_or("one was published")?;
    let (settler, letter) =
        (subscription.settler(), DeadLetter::from_headers(Reason::Rejected, Headers::new()));
    let (incoming, token) = delivery.into_parts();
    let error = settler.dead_letter(&incoming, token, &letter).await.err().ok_or("no room for it")?;
    assert_eq!(error.kind(), SettleErrorKind::NotStored);
    drop(subscription);
    let error = settler.dead_letter(&incoming, token, &letter).await.err().ok_or("no longer held")?;
    assert_eq!(error.kind(), SettleErrorKind::Gone);
    assert_eq!((broker.depth("q"), broker.depth("q.dead")), (Some(1), Some(1)));
    Ok(())
}

#[tokio::test]
async fn a_subscription_that_holds_all_it_may_wakes_when_something_is_settled() -> Tested {
    let broker = Embedded::new();
    let mut subscription = subscribe(&broker, "q", 1).await?;
    publish(&broker, "q", &["1", "2", "3"]).await?;
    let first = at_once(&mut *subscription, 10)?;
    assert_eq!(bodies(&first), ["1"]);
    let settler = subscription.settler();
    let rest = tokio::spawn(async move {
        let second = next(&mut *subscription, 10).await?;
        let seen = bodies(&second);
        second.into_iter().for_each(steadfast_core::Delivery::ack);
        Ok::<_, steadfast_core::SubscribeError>((seen, bodies(&at_once(&mut *subscription, 10)?)))
    });
    tokio::task::yield_now().await;
    let (incoming, token) = first.into_iter().next().ok_or("one came")?.into_parts();
    let requeue = Requeue { after: Duration::from_secs(60), headers: Headers::new() };
    settler.requeue(&incoming, token, &requeue).await?;
    let (second, third) = tokio::time::timeout(Duration::from_secs(5), rest).await???;
    assert_eq!((second, third), (vec!["2".to_owned()], vec!["3".to_owned()]));
    Ok(())
}

#[tokio::test]
async fn a_stopped_subscription_says_so_and_settles_what_it_handed_out() -> Tested {
    let broker = Embedded::new();
    let mut subscription = subscribe(&broker, "q", 10).await?;
    publish(&broker, "q", &["1"]).await?;
    let batch = at_once(&mut *subscription, 10)?;
    subscription.stop().now_or_never().ok_or("has nothing to wait for")??;
    let error = at_once(&mut *subscription, 10).err().ok_or("was stopped")?;
    assert_eq!(error.kind(), SubscribeErrorKind::Ended);
    batch.into_iter().for_each(steadfast_core::Delivery::ack);
    subscription.settler().finish().await?;
    subscription.close().await?;
    assert_eq!(broker.depth("q"), Some(0));
    broker.close().await;
    Ok(())
}

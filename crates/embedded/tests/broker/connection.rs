//! URLs, and what connections to one broker share.

use steadfast_core::{Broker, ConnectErrorKind, Destination, Outgoing, PublishErrorKind, SubscribeErrorKind};
use steadfast_embedded::{Embedded, connect};

use crate::support::{Tested, at_once, bodies, next, publish, request, subscribe};

#[tokio::test]
async fn a_name_is_shared_while_somebody_holds_it() -> Tested {
    let first = connect("embedded:shared-name").await?;
    drop(subscribe(&first, "q", 1).await?);
    publish(&first, "q", &["1"]).await?;
    let second = connect("embedded:shared-name").await?;
    drop(first);
    assert_eq!(second.depth("q"), Some(1));
    assert_eq!(connect("embedded:other-name").await?.depth("q"), None);
    assert_eq!(connect("embedded:").await?.depth("q"), None);
    drop(second);
    assert_eq!(connect("embedded:shared-name").await?.depth("q"), None, "nobody held it any more");
    Ok(())
}

#[tokio::test]
async fn a_url_that_means_something_else_is_refused_with_the_way_out() -> Tested {
    for url in ["amqp://localhost", "embedded", "embedded:/var/lib/shop", "embedded://shop", "embedded:a?b=c"]
    {
        let error = connect(url).await.err().ok_or("a URL that nothing is known of")?;
        assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl);
        assert!(error.to_string().contains("embedded:name"), "{error}");
        assert!(error.to_string().contains(url), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn closing_ends_this_connection_and_leaves_the_others_the_messages() -> Tested {
    let broker = Embedded::new();
    let other = broker.reconnect();
    let (mut mine, mut theirs) = (subscribe(&broker, "q", 1).await?, subscribe(&other, "q", 10).await?);
    publish(&broker, "q", &["1"]).await?;
    let held = at_once(&mut *mine, 1)?;
    let publisher = broker.publisher().await?;
    let waiting = tokio::spawn(async move { next(&mut *theirs, 1).await.map(|batch| bodies(&batch)) });
    tokio::task::yield_now().await;
    broker.close().await;
    assert_eq!(waiting.await??, ["1"]);
    assert_eq!(at_once(&mut *mine, 1).err().ok_or("was closed")?.kind(), SubscribeErrorKind::Ended);
    let late = publisher.send(Outgoing::new("q", "2")).await.err().ok_or("was closed")?;
    assert_eq!(late.kind(), PublishErrorKind::Unreachable);
    assert!(broker.subscribe(request("q", 1)).await.is_err());
    assert!(broker.publisher().await.is_err());
    drop(held);
    Ok(())
}

#[tokio::test]
async fn an_exchange_is_refused_with_the_way_out() -> Tested {
    let broker = Embedded::new();
    let publisher = broker.publisher().await?;
    let error = publisher.send(Outgoing::new(Destination::exchange("shop", "order.placed"), "{}")).await;
    let error = error.err().ok_or("there are no exchanges")?;
    assert_eq!(error.kind(), PublishErrorKind::Invalid);
    assert!(error.to_string().contains("Destination::queue(\"order.placed\")"), "{error}");
    let mut request = request("q", 1);
    request.dead_letter = Destination::exchange("dlx", "q");
    let error = broker.subscribe(request).await.err().ok_or("there are no exchanges")?;
    assert_eq!(error.kind(), SubscribeErrorKind::Unsupported);
    Ok(())
}

//! Trimming: nothing that any group still needs goes.

use std::time::Duration;

use steadfast_core::{DeadLetter, Headers, Reason};
use steadfast_streams::{HeldBack, Retention, Stream, StreamErrorKind};

use crate::support::{Bed, ack, body, many, one, parts};

/// Adds entries with the IDs 1-0, 2-0 and so on.
fn fill(bed: &mut Bed, entries: usize) {
    let stream = bed.stream.clone();
    for n in 1..=entries {
        bed.raw::<String>(&["XADD", &stream, &format!("{n}-0"), "body", &n.to_string()]);
    }
}

fn ids(bed: &mut Bed) -> Vec<String> {
    let stream = bed.stream.clone();
    let entries: Vec<(String, redis::Value)> = bed.raw(&["XRANGE", &stream, "-", "+"]);
    entries.into_iter().map(|(id, _)| id).collect()
}

fn read(bed: &mut Bed, group: &str, count: usize) -> Vec<String> {
    let stream = bed.stream.clone();
    let answer: Option<redis::streams::StreamReadReply> =
        bed.raw(&["XREADGROUP", "GROUP", group, "raw", "COUNT", &count.to_string(), "STREAMS", &stream, ">"]);
    let mut keys = answer.map(|answer| answer.keys).unwrap_or_default();
    keys.pop().map(|key| key.ids.into_iter().map(|entry| entry.id).collect()).unwrap_or_default()
}

#[tokio::test]
async fn the_slowest_group_holds_back_and_the_preview_says_so() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    fill(&mut bed, 100);
    for group in ["quick", "slow"] {
        bed.raw::<()>(&["XGROUP", "CREATE", &stream, group, "0"]);
    }
    let quick = read(&mut bed, "quick", 100);
    bed.raw::<i64>(
        &[&["XACK", &stream, "quick"][..], &quick.iter().map(|id| &**id).collect::<Vec<_>>()].concat(),
    );
    // forty read, and the thirtieth is pending
    let mut slow = read(&mut bed, "slow", 40);
    slow.remove(29);
    bed.raw::<i64>(
        &[&["XACK", &stream, "slow"][..], &slow.iter().map(|id| &**id).collect::<Vec<_>>()].concat(),
    );
    let retention = Retention::new().last(10);
    let preview = bed.broker.preview_trim(&stream, &retention).await.expect("looks");
    assert_eq!((preview.count, preview.oldest_kept.as_deref()), (29, Some("30-0")));
    assert_eq!(preview.held_back, Some(HeldBack::Group("slow".into())));
    assert_eq!(ids(&mut bed).len(), 100, "a preview trims nothing");
    assert_eq!(bed.broker.trim(&stream, &retention).await.expect("trims"), preview);
    assert_eq!(ids(&mut bed).first().map(String::as_str), Some("30-0"));
    bed.raw::<i64>(&["XACK", &stream, "slow", "30-0"]);
    let trimmed = bed.broker.trim(&stream, &retention).await.expect("trims");
    assert_eq!((trimmed.count, trimmed.oldest_kept.as_deref()), (11, Some("41-0")));
    let rest = read(&mut bed, "slow", 100);
    assert_eq!(rest.len(), 60, "unread ones were trimmed");
    bed.raw::<i64>(
        &[&["XACK", &stream, "slow"][..], &rest.iter().map(|id| &**id).collect::<Vec<_>>()].concat(),
    );
    let trimmed = bed.broker.trim(&stream, &retention).await.expect("trims");
    assert_eq!((trimmed.count, trimmed.held_back), (50, None));
    assert_eq!(ids(&mut bed).len(), 10);
}

#[tokio::test]
async fn a_stream_without_groups_is_left_alone_and_what_is_no_stream_is_named() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    fill(&mut bed, 20);
    let trimmed = bed.broker.trim(&stream, &Retention::new().last(5)).await.expect("looks");
    assert_eq!((trimmed.count, trimmed.held_back), (0, Some(HeldBack::NoGroup)));
    assert_eq!(bed.broker.trim(&stream, &Retention::new()).await.expect("looks").held_back, None);
    assert_eq!(ids(&mut bed).len(), 20);
    let missing = bed.broker.trim(&bed.dead(), &Retention::new().last(5)).await.expect("nothing there");
    assert_eq!((missing.count, missing.oldest_kept), (0, None));
    bed.raw::<()>(&["DEL", &stream]);
    bed.raw::<()>(&["SET", &stream, "x"]);
    let error = bed.broker.trim(&stream, &Retention::new().last(5)).await.expect_err("no stream");
    assert_eq!(error.kind(), StreamErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains(&stream), "{error}");
}

#[tokio::test]
async fn old_entries_go_by_age_in_as_many_steps_as_it_takes() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    let script = "for i = 1, 1700 do redis.call('XADD', KEYS[1], i .. '-7', 'body', i) end";
    bed.raw::<()>(&["EVAL", script, "1", &stream]);
    let young = bed.add(&["body", "young"]);
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "$"]);
    let retention = Retention::new().younger_than(Duration::from_secs(3600));
    let preview = bed.broker.preview_trim(&stream, &retention).await.expect("looks");
    assert_eq!((preview.count, &preview.oldest_kept), (1700, &Some(young.clone())));
    assert_eq!(bed.broker.trim(&stream, &retention).await.expect("trims"), preview);
    assert_eq!(ids(&mut bed), [young]);
    let all = bed.broker.trim(&stream, &Retention::new().last(0)).await.expect("trims");
    assert_eq!((all.count, all.oldest_kept), (1, None));
    assert_eq!(bed.raw::<i64>(&["XLEN", &stream]), 0);
}

/// Any groups, read and acknowledged as may be, against the rule written down a second time.
#[tokio::test]
async fn what_goes_is_what_the_rule_says() {
    let mut bed = Bed::shared().await;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % (u64::try_from(limit).expect("small") + 1)).expect("small")
    };
    for round in 0..150 {
        let stream = bed.stream.clone();
        bed.raw::<i64>(&["DEL", &stream]);
        let (entries, keep) = (below(40), below(40));
        fill(&mut bed, entries);
        let mut needed = entries;
        let groups = if entries == 0 { 0 } else { below(3) };
        for group in (0..groups).map(|group| group.to_string()) {
            bed.raw::<()>(&["XGROUP", "CREATE", &stream, &group, "0"]);
            let count = below(entries);
            let taken = if count == 0 { Vec::new() } else { read(&mut bed, &group, count) };
            let (mut oldest, most_pending) = (taken.len(), below(3));
            for (at, id) in taken.iter().enumerate() {
                if below(9) < most_pending {
                    oldest = oldest.min(at);
                } else {
                    bed.raw::<i64>(&["XACK", &stream, &group, id]);
                }
            }
            needed = needed.min(oldest);
        }
        let excess = entries.saturating_sub(keep);
        let goes = if groups == 0 { 0 } else { excess.min(needed) };
        let retention = Retention::new().last(u64::try_from(keep).expect("small"));
        let preview = bed.broker.preview_trim(&stream, &retention).await.expect("looks");
        let trimmed = bed.broker.trim(&stream, &retention).await.expect("trims");
        assert_eq!(trimmed, preview, "round {round}");
        assert_eq!(trimmed.count, u64::try_from(goes).expect("small"), "round {round}");
        assert_eq!(trimmed.held_back.is_some(), goes < excess, "round {round}");
        let left: Vec<String> = (goes + 1..=entries).map(|n| format!("{n}-0")).collect();
        assert_eq!(ids(&mut bed), left, "round {round}");
    }
}

#[tokio::test]
async fn three_groups_of_different_speed_read_all_of_a_stream_that_is_trimmed_under_them() {
    const ALL: usize = 3000;
    const SLACK: u64 = 50;
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    let retention = Retention::new().last(SLACK);
    let mut groups = Vec::new();
    for (name, speed) in [("quick", 100), ("steady", 50), ("slow", 20)] {
        let source = Stream::new(&*stream).group(name).retain(retention);
        groups.push((bed.subscribe(source, 100).await, speed, 0_usize));
    }
    let mut added = 0;
    while groups.iter().any(|(_, _, read)| *read < ALL) {
        for _ in 0..100.min(ALL - added) {
            bed.add(&["body", &added.to_string()]);
            added += 1;
        }
        for (subscription, speed, read) in &mut groups {
            let count = (*speed).min(added - *read);
            let batch = many(&mut **subscription, count).await;
            for delivery in &batch {
                assert_eq!(body(delivery), read.to_string().as_bytes(), "an unread entry was trimmed");
                *read += 1;
            }
            ack(&**subscription, batch).await;
        }
        // the keepers trim every second; this is the same at once
        bed.broker.trim(&stream, &retention).await.expect("trims");
        let slowest = added - groups.iter().map(|(_, _, read)| *read).min().expect("three");
        let (length, lag) = (bed.raw::<u64>(&["XLEN", &stream]), u64::try_from(slowest).expect("small"));
        assert!(length <= lag.max(SLACK), "{length} entries for a lag of {lag}");
    }
    assert_eq!(bed.raw::<u64>(&["XLEN", &stream]), SLACK);
}

#[tokio::test]
async fn a_running_consumer_trims_its_stream_and_its_dead_letters() {
    let mut bed = Bed::shared().await;
    let (stream, dead) = (bed.stream.clone(), bed.dead());
    let source = bed.group().retain(Retention::new().last(3)).retain_dead_letters(Retention::new().last(2));
    let mut subscription = bed.subscribe(source, 10).await;
    let settler = subscription.settler();
    for n in 0..10 {
        bed.add(&["body", &n.to_string()]);
        let (incoming, token) = parts(one(&mut *subscription).await);
        let letter = DeadLetter::from_headers(Reason::Rejected, Headers::new());
        settler.dead_letter(&incoming, token, &letter).await.expect("stored");
    }
    bed.until("both are trimmed", |bed| {
        bed.raw::<i64>(&["XLEN", &stream]) == 3 && bed.raw::<i64>(&["XLEN", &dead]) == 2
    })
    .await;
    let newest: Vec<(String, Vec<String>)> = bed.raw(&["XREVRANGE", &dead, "+", "-", "COUNT", "1"]);
    assert_eq!(newest[0].1[1], "9");
}

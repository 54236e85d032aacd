//! Properties of the decision, over random policies and whole histories of a message.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

fn millis() -> impl Strategy<Value = Duration> {
    (0_u64..100_000).prop_map(Duration::from_millis)
}

fn plain_policies() -> impl Strategy<Value = Retry> {
    let schedule = prop_oneof![
        (millis(), millis()).prop_map(|(a, b)| Retry::exponential(a.min(b)..a.max(b))),
        millis().prop_map(Retry::fixed),
        prop::collection::vec(millis(), 0..8).prop_map(Retry::listed),
    ];
    // quarters: what a config file keeps to the last bit
    let jitter = (0_u32..8).prop_map(|quarters| f64::from(quarters) / 4.0);
    (schedule, 1_u32..20, jitter, prop::option::of(millis()), 0_u32..4).prop_map(
        |(retry, attempts, jitter, age, immediate)| {
            let retry = retry.max_attempts(attempts).jitter(jitter).immediately(immediate);
            age.map_or(retry.clone(), |age| retry.max_age(age))
        },
    )
}

fn classes() -> impl Strategy<Value = FailureClass> {
    prop_oneof![
        Just(FailureClass::tag("down")),
        Just(FailureClass::tag("odd")),
        Just(FailureClass::of::<std::fmt::Error>()),
        Just(FailureClass::Panic),
        Just(FailureClass::Timeout),
    ]
}

fn policies() -> impl Strategy<Value = Retry> {
    let rules = prop::collection::vec((classes(), plain_policies()), 0..3);
    (plain_policies(), rules, prop::collection::vec(classes(), 0..2)).prop_map(|(retry, rules, reject)| {
        let retry = rules.into_iter().fold(retry, |retry, (class, policy)| retry.on(class, policy));
        reject.into_iter().fold(retry, Retry::reject)
    })
}

/// What can happen to one attempt. Failures cannot be cloned, so each is made when its turn comes.
#[derive(Clone, Copy, Debug)]
enum Step {
    Succeeds,
    Fails,
    FailsTyped,
    FailsInClass,
    Panics,
    TimesOut,
    NamesADelay(u64),
    Snoozes(u64),
    Rejects,
    Ignores,
}

impl Step {
    fn outcome(self) -> Outcome {
        Outcome::Failed(match self {
            Self::Succeeds => return Outcome::Ack,
            Self::Fails => Failure::retry("x"),
            Self::FailsTyped => std::fmt::Error.into(),
            Self::FailsInClass => Failure::retry("x").class("down"),
            Self::Panics => Failure::panic("x".into()),
            Self::TimesOut => Failure::timeout(Duration::from_secs(1)),
            Self::NamesADelay(ms) => Failure::retry_after(Duration::from_millis(ms), "x"),
            Self::Snoozes(ms) => Failure::snooze(Duration::from_millis(ms)),
            Self::Rejects => Failure::reject("x"),
            Self::Ignores => Failure::ignore("x"),
        })
    }
}

fn step(rng: &mut fastrand::Rng) -> Step {
    match rng.u32(..20) {
        0 => Step::Succeeds,
        1..=6 => Step::Fails,
        7..=9 => Step::FailsTyped,
        10..=11 => Step::FailsInClass,
        12 => Step::Panics,
        13 => Step::TimesOut,
        14 => Step::NamesADelay(rng.u64(..100_000)),
        15..=17 => Step::Snoozes(rng.u64(..100_000)),
        18 => Step::Rejects,
        _ => Step::Ignores,
    }
}

/// The longest delay that the policy can come to.
fn longest(policy: &Retry) -> Duration {
    let base = match &policy.schedule {
        Schedule::Exponential { cap, .. } => *cap,
        Schedule::Fixed(delay) => *delay,
        Schedule::Listed(delays) => delays.iter().max().copied().unwrap_or_default(),
    };
    base.mul_f64(1.0 + policy.jitter) + Duration::from_micros(1)
}

/// 100,000 messages, each from its first attempt to its end as brokers count it: attempts in a header, age on the clock.
/// 500 policies, because making one by a strategy takes longer than 200 histories.
#[test]
fn a_history_keeps_every_limit() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut histories = 0;
    for seed in 0..500 {
        let retry = policies().new_tree(&mut runner).expect("a policy").current();
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            one_history(&retry, &mut rng);
            histories += 1;
        }
    }
    assert_eq!(histories, 100_000);
}

fn one_history(retry: &Retry, rng: &mut fastrand::Rng) {
    let (mut failed, mut age, ages) = (0_u32, Duration::ZERO, rng.bool());
    for _ in 0..rng.usize(1..40) {
        let (step, attempt) = (step(rng), failed + 1);
        let (outcome, shadow) = (step.outcome(), step.outcome());
        let policy = match &shadow {
            Outcome::Failed(failure) => retry.policy_for(failure),
            Outcome::Ack => Some(retry),
        };
        match decide(retry, outcome, attempt, ages.then_some(age), rng.f64()) {
            Settlement::Ack => return assert!(matches!(step, Step::Succeeds)),
            Settlement::Drop(_) => return assert!(matches!(step, Step::Ignores)),
            Settlement::Snooze(after) => {
                // costs nothing: neither an attempt nor a limit
                assert!(matches!(step, Step::Snoozes(ms) if after == Duration::from_millis(ms)));
                age += after;
            }
            Settlement::Retry { after, .. } => {
                may_be_retried(policy.unwrap_or(retry), step, attempt, ages.then_some(age), after);
                failed += 1;
                age += after;
            }
            Settlement::DeadLetter(reason, _) => return is_dead(retry, policy, step, attempt, ages, reason),
        }
    }
}

fn may_be_retried(policy: &Retry, step: Step, attempt: u32, age: Option<Duration>, after: Duration) {
    assert!(attempt < policy.max_attempts, "{step:?} {policy:?}");
    if let (Some(limit), Some(age)) = (policy.max_age, age) {
        assert!(age + after <= limit, "{step:?} {policy:?}");
    }
    match step {
        Step::NamesADelay(ms) => assert_eq!(after, Duration::from_millis(ms)),
        _ if attempt <= policy.immediate => assert_eq!(after, Duration::ZERO),
        _ => {
            assert!(after <= longest(policy), "{after:?} {policy:?}");
            assert!(after >= policy.clone().jitter(0.0).delay(attempt, 0.0), "{after:?} {policy:?}");
        }
    }
}

fn is_dead(retry: &Retry, policy: Option<&Retry>, step: Step, attempt: u32, ages: bool, reason: Reason) {
    let by_class = policy.is_none();
    let policy = policy.unwrap_or(retry);
    match reason {
        Reason::Rejected => assert!(matches!(step, Step::Rejects) || by_class),
        Reason::Expired => assert!(policy.max_age.is_some() && ages),
        Reason::Exhausted | Reason::Panicked | Reason::TimedOut => assert!(attempt >= policy.max_attempts),
        Reason::Undecodable | Reason::UnknownType | Reason::BadHeaders | Reason::Crashed => {
            unreachable!("no handler says {reason}")
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn jitter_only_lengthens_and_takes_few_values(
        retry in plain_policies(), attempt in 1_u32..40, chance in 0.0..=1.0_f64,
    ) {
        let plain = retry.clone().jitter(0.0).delay(attempt, chance);
        let delay = retry.delay(attempt, chance);
        prop_assert!(delay >= plain);
        prop_assert!(delay.as_secs_f64() <= plain.as_secs_f64() * (1.0 + retry.jitter) + 1e-6);
        let values = (0..=4).map(|step| retry.delay(attempt, f64::from(step) / 4.0)).collect::<Vec<_>>();
        prop_assert!(values.contains(&delay));
    }

    #[test]
    fn delays_of_an_exponential_policy_grow_up_to_the_cap(
        first in 1_u64..1000, cap in 1000_u64..100_000, attempt in 1_u32..60,
    ) {
        let retry = Retry::exponential(Duration::from_millis(first)..Duration::from_millis(cap));
        let (delay, next) = (retry.delay(attempt, 0.5), retry.delay(attempt + 1, 0.5));
        prop_assert!(delay <= next && next <= Duration::from_millis(cap));
    }

    #[test]
    fn every_policy_survives_a_config_file(retry in policies()) {
        let text = serde_json::to_string(&retry).expect("serialises");
        prop_assert_eq!(serde_json::from_str::<Retry>(&text).expect("parses"), retry, "{}", text);
    }
}

#[test]
fn success_is_acknowledged() {
    assert!(matches!(decide(&Retry::none(), Outcome::Ack, 9, None, 0.0), Settlement::Ack));
}

#[test]
fn a_class_has_its_own_policy_and_rejection_comes_first() {
    let patient = Retry::fixed(Duration::from_secs(60)).max_attempts(30);
    let retry =
        Retry::none().on(FailureClass::tag("down"), patient).reject(FailureClass::of::<std::fmt::Error>());
    let said = |step: Step| decide(&retry, step.outcome(), 7, None, 0.0);
    assert!(matches!(said(Step::FailsInClass), Settlement::Retry { after, .. } if after.as_secs() == 60));
    assert!(matches!(said(Step::Fails), Settlement::DeadLetter(Reason::Exhausted, _)));
    assert!(matches!(said(Step::FailsTyped), Settlement::DeadLetter(Reason::Rejected, _)));
}

#[test]
fn what_a_config_file_says_wrongly_is_named() {
    let error = |text: &str| serde_json::from_str::<Retry>(text).expect_err("refused").to_string();
    let fixed = r#""schedule": {"fixed": "1s"}"#;
    assert!(error(&format!("{{{fixed}, \"jtter\": 1}}")).contains("jtter"));
    assert!(error(&format!("{{{fixed}, \"max_attempts\": 0}}")).contains("at least 1"));
    assert!(error(&format!("{{{fixed}, \"jitter\": -1.0}}")).contains("jitter"));
    assert!(error(r#"{"schedule": {"fixed": "soon"}}"#).contains("soon"));
}

//! Properties of the circuit over random lives of a consumer.

use proptest::prelude::*;

use super::*;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Passes(u64),
    Starts,
    /// The attempt under way at this place ends so.
    Ends(usize, Signal),
    /// It is dropped.
    IsLost(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let signal =
        prop_oneof![Just(Signal::Up), Just(Signal::Down), Just(Signal::Neither), Just(Signal::Untried)];
    let signal = prop_oneof![3 => Just(Signal::Down), 2 => signal];
    let step = prop_oneof![
        (0_u64..3000).prop_map(Step::Passes),
        Just(Step::Starts),
        (0_usize..8, signal).prop_map(|(at, signal)| Step::Ends(at, signal)),
        (0_usize..8).prop_map(Step::IsLost),
    ];
    prop::collection::vec(step, 0..200)
}

fn breaker(threshold: u32, first: u64, cap: u64) -> CircuitBreaker {
    let (first, cap) = (Duration::from_millis(first), Duration::from_millis(cap));
    CircuitBreaker::on(FailureClass::tag("down")).threshold(threshold).probes(first..cap)
}

/// A circuit, and what it must do, kept apart from how it does it.
struct Life {
    circuit: Circuit,
    now: Instant,
    under_way: Vec<Ticket>,
    /// Failures that were charged since the last success in the present closed state.
    charged: u32,
    /// The earliest that a probe may start, as the last answer said.
    not_before: Option<Instant>,
}

impl Life {
    fn new(breaker: CircuitBreaker) -> Self {
        let circuit = Circuit::new(breaker);
        Self { circuit, now: Instant::now(), under_way: Vec::new(), charged: 0, not_before: None }
    }

    fn probes_under_way(&self) -> usize {
        let epoch = self.circuit.epoch;
        self.under_way.iter().filter(|ticket| ticket.probe && ticket.epoch == epoch).count()
    }

    fn start(&mut self) -> Result<(), TestCaseError> {
        match self.circuit.admits(self.now) {
            Admits::All => prop_assert!(!self.circuit.is_open()),
            Admits::Probe => {
                prop_assert_eq!(self.probes_under_way(), 0);
                prop_assert!(self.not_before.is_some_and(|at| at <= self.now), "a probe came too soon");
            }
            Admits::Later(at) => {
                prop_assert!(at > self.now && self.probes_under_way() == 0);
                return Ok(());
            }
            Admits::Nothing => {
                prop_assert_eq!(self.probes_under_way(), 1, "it waits for a probe that is not there");
                return Ok(());
            }
        }
        let ticket = self.circuit.start();
        prop_assert_eq!(ticket.probe, self.circuit.is_open());
        self.under_way.push(ticket);
        Ok(())
    }

    fn end(&mut self, ticket: Ticket, signal: Signal) -> Result<(), TestCaseError> {
        let (was_open, current) = (self.circuit.is_open(), ticket.epoch == self.circuit.epoch);
        let ruling = self.circuit.observe(ticket, signal, self.now);
        prop_assert!(ruling.held.is_none() || signal == Signal::Down, "only what says down is put off");
        if was_open {
            prop_assert_eq!(
                ruling.held.is_some(),
                signal == Signal::Down,
                "no attempt is counted while open"
            );
        }
        match (signal, ruling.held) {
            (Signal::Down, None) => self.charged += 1,
            (Signal::Up, _) if current && !was_open => self.charged = 0,
            (Signal::Up | Signal::Down | Signal::Neither | Signal::Untried, _) => {}
        }
        prop_assert!(self.charged < self.circuit.breaker.threshold.max(1), "{} were charged", self.charged);
        let closes = was_open && ticket.probe && current && signal == Signal::Up;
        prop_assert_eq!(matches!(ruling.change, Some(Change::Closed { .. })), closes);
        prop_assert_eq!(self.circuit.is_open(), (was_open && !closes) || is_opening(ruling.change));
        if closes {
            self.charged = 0;
            prop_assert_eq!(self.circuit.admits(self.now), Admits::All);
        }
        self.keep_time(ruling, ticket.probe && current, signal)
    }

    /// The wait for a probe: the first at the opening, then doubled by each that failed, never above the cap.
    fn keep_time(&mut self, ruling: Ruling, probe: bool, signal: Signal) -> Result<(), TestCaseError> {
        let Probes { first, cap } = self.circuit.breaker.probes.clone();
        match ruling.change {
            Some(Change::Opened { failures, probe_in }) => {
                prop_assert!(failures >= self.circuit.breaker.threshold);
                prop_assert_eq!(probe_in, first.max(SOONEST));
                self.not_before = Some(self.now + probe_in);
            }
            Some(Change::ProbeFailed { probes, probe_in }) => {
                let doubled = first.saturating_mul(2_u32.saturating_pow(probes.min(31)));
                prop_assert_eq!(probe_in, doubled.min(cap.max(first)).max(SOONEST));
                self.not_before = Some(self.now + probe_in);
            }
            Some(Change::Closed { probes, .. }) => {
                prop_assert!(probes >= 1);
                self.not_before = None;
            }
            None if probe && signal == Signal::Untried => self.not_before = Some(self.now),
            None => {}
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Passes(millis) => self.now += Duration::from_millis(millis),
            Step::Starts => self.start()?,
            Step::Ends(at, signal) if at < self.under_way.len() => {
                let ticket = self.under_way.remove(at);
                self.end(ticket, signal)?;
            }
            Step::IsLost(at) if at < self.under_way.len() => {
                let ticket = self.under_way.remove(at);
                self.circuit.lose(ticket, self.now);
            }
            Step::Ends(..) | Step::IsLost(_) => {}
        }
        Ok(())
    }
}

fn is_opening(change: Option<Change>) -> bool {
    matches!(change, Some(Change::Opened { .. }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_happens_few_attempts_are_charged_and_one_probe_goes_at_a_time(
        steps in steps(), threshold in 0_u32..6, first in 0_u64..2000, cap in 0_u64..20_000,
    ) {
        let mut life = Life::new(breaker(threshold, first, cap));
        for step in steps {
            life.step(step)?;
        }
        // whatever went before: once the dependency is back, the circuit closes
        for ticket in std::mem::take(&mut life.under_way) {
            life.circuit.lose(ticket, life.now);
        }
        if life.circuit.is_open() {
            life.now += Duration::from_secs(60);
            life.not_before = life.not_before.map(|at| at.min(life.now));
            life.start()?;
            let probe = life.under_way.pop();
            prop_assert!(probe.is_some(), "a probe is due");
            life.end(probe.expect("is there"), Signal::Up)?;
        }
        prop_assert_eq!(life.circuit.admits(life.now), Admits::All);
    }
}

#[test]
fn only_what_its_classes_say_is_a_sign() {
    let breaker = CircuitBreaker::on(FailureClass::tag("down")).or(FailureClass::Timeout);
    let signal = |failure| Signal::of(&Outcome::Failed(failure), true, &breaker);
    assert_eq!(signal(Failure::retry("refused").class("down")), Signal::Down);
    assert_eq!(signal(Failure::retry_after(Duration::from_secs(1), "refused").class("down")), Signal::Down);
    assert_eq!(signal(Failure::timeout(Duration::from_secs(1))), Signal::Down);
    assert_eq!(signal(Failure::retry("refused")), Signal::Neither);
    assert_eq!(signal(Failure::reject("never").class("down")), Signal::Neither);
    assert_eq!(signal(Failure::snooze(Duration::from_secs(1)).class("down")), Signal::Neither);
    assert_eq!(Signal::of(&Outcome::Ack, true, &breaker), Signal::Up);
    let untried = Outcome::Failed(Failure::poison(Cause::Undecodable, "{"));
    assert_eq!(Signal::of(&untried, false, &breaker), Signal::Untried);
}

#[test]
fn it_is_data() {
    let breaker = breaker(3, 500, 30_000).or(FailureClass::Timeout);
    let text = serde_json::to_string(&breaker).expect("writes");
    assert_eq!(
        text,
        r#"{"classes":[{"tag":"down"},"timeout"],"threshold":3,"probes":{"first":"500ms","cap":"30s"}}"#
    );
    assert_eq!(serde_json::from_str::<CircuitBreaker>(&text).expect("reads"), breaker);
    let least: CircuitBreaker = serde_json::from_str(r#"{"classes":["timeout"]}"#).expect("reads");
    assert_eq!(least, CircuitBreaker::on(FailureClass::Timeout));
    let none: CircuitBreaker = serde_json::from_str(r#"{"classes":[]}"#).expect("reads");
    assert!(none.problem().is_some_and(|problem| problem.contains("at least one")));
    assert!(CircuitBreaker::on(FailureClass::Panic).problem().is_some());
}

//! The plan against a model of OTP's supervisor, over random histories.
//!
//! OTP's supervisor does each thing to its end before the next; the harness does the same to ours, by answering every
//! stop and every wait at once. Then both must have started and stopped the same children in the same order, and given up
//! at the same fault.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::plan::{Action, ChildId, How, Plan, Restart, Strategy as Rule};
use super::restart::{RestartIntensity, RestartWindow};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Start(u64),
    Stop(u64),
    GiveUp(u64),
}

/// supervisor(3) of Erlang/OTP, in its own order of doing things.
struct Model {
    rule: Rule,
    max: usize,
    within: Duration,
    spent: Vec<Instant>,
    /// Id, restart type, running.
    children: Vec<(u64, Restart, bool)>,
    trace: Vec<Step>,
    over: bool,
}

impl Model {
    fn ended(&mut self, id: u64, how: How, now: Instant) {
        let Some(at) = self.children.iter().position(|child| child.0 == id && child.2) else { return };
        if self.over {
            return;
        }
        self.children[at].2 = false;
        match (self.children[at].1, how) {
            (Restart::Temporary, _) => drop(self.children.remove(at)),
            (Restart::Transient, How::Normal) => {}
            _ => self.restart(at, how, now),
        }
    }

    fn restart(&mut self, at: usize, how: How, now: Instant) {
        let id = self.children[at].0;
        if how != How::Outage {
            self.spent.push(now);
            let (within, spent) = (self.within, &self.spent);
            if spent.iter().filter(|spent| now.duration_since(**spent) <= within).count() > self.max {
                self.trace.push(Step::GiveUp(id));
                self.stop_from(0);
                self.over = true;
                return;
            }
        }
        match self.rule {
            Rule::OneForOne => {
                self.trace.push(Step::Start(id));
                self.children[at].2 = true;
            }
            Rule::OneForAll => self.restart_from(0),
            Rule::RestForOne => self.restart_from(at),
        }
    }

    fn stop_from(&mut self, from: usize) {
        for child in self.children[from..].iter_mut().rev().filter(|child| child.2) {
            child.2 = false;
            self.trace.push(Step::Stop(child.0));
        }
    }

    fn restart_from(&mut self, from: usize) {
        self.stop_from(from);
        let mut at = 0;
        self.children.retain(|child| {
            at += 1;
            at <= from || child.1 != Restart::Temporary
        });
        for child in &mut self.children[from..] {
            child.2 = true;
            self.trace.push(Step::Start(child.0));
        }
    }
}

/// Our plan, with every action carried out at once.
struct Harness {
    plan: Plan,
    now: Instant,
    trace: Vec<Step>,
    up: Vec<u64>,
    waits: Vec<Duration>,
    over: bool,
}

impl Harness {
    fn new(rule: Rule, max: u32, within: Duration, kinds: &[Restart]) -> Self {
        let mut plan = Plan::new(rule, RestartWindow::new(RestartIntensity::new(max, within)));
        let mut up = Vec::new();
        for (id, kind) in (0..).zip(kinds) {
            plan.add(ChildId(id), *kind);
            assert_eq!(plan.start(ChildId(id)), [Action::Start(ChildId(id))]);
            up.push(id);
        }
        Self { plan, now: Instant::now(), trace: Vec::new(), up, waits: Vec::new(), over: false }
    }

    fn ended(&mut self, id: u64, how: How) {
        if self.up.contains(&id) && !self.over {
            self.up.retain(|up| *up != id);
            let actions = self.plan.ended(ChildId(id), how, Duration::ZERO, self.now, 0.5);
            self.carry_out(actions);
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut todo = VecDeque::from(actions);
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Start(ChildId(id)) => {
                    assert!(!self.up.contains(&id), "{id} is started twice");
                    self.up.push(id);
                    self.trace.push(Step::Start(id));
                }
                Action::Stop(ChildId(id)) => {
                    assert!(self.up.contains(&id), "{id} is stopped, and is not up");
                    self.up.retain(|up| *up != id);
                    self.trace.push(Step::Stop(id));
                    todo.extend(self.plan.ended(ChildId(id), How::Normal, Duration::ZERO, self.now, 0.5));
                }
                Action::Wait(id, after) => {
                    self.waits.push(after);
                    let early = self.plan.due(id, self.now);
                    assert!(early.is_empty(), "started before its time: {early:?}");
                    self.now += after;
                    todo.extend(self.plan.due(id, self.now));
                }
                Action::Forget(_) => {}
                Action::GiveUp(ChildId(id)) => self.trace.push(Step::GiveUp(id)),
                Action::End => {
                    assert!(self.up.is_empty(), "ended with children up: {:?}", self.up);
                    self.over = true;
                }
            }
        }
    }
}

fn kinds() -> impl Strategy<Value = Vec<Restart>> {
    let kind = prop_oneof![
        3 => Just(Restart::Permanent),
        2 => Just(Restart::Transient),
        1 => Just(Restart::Temporary),
    ];
    prop::collection::vec(kind, 1..7)
}

fn rules() -> impl Strategy<Value = Rule> {
    prop_oneof![Just(Rule::OneForOne), Just(Rule::OneForAll), Just(Rule::RestForOne)]
}

fn ends() -> impl Strategy<Value = Vec<(u64, How, u64)>> {
    let how = prop_oneof![1 => Just(How::Normal), 1 => Just(How::Outage), 3 => Just(How::Fault)];
    prop::collection::vec((0_u64..7, how, 0_u64..60_000), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn does_what_otp_does(
        rule in rules(), kinds in kinds(), ends in ends(), max in 0_u32..6, within in 1_u64..200,
    ) {
        let within = Duration::from_secs(within);
        let mut ours = Harness::new(rule, max, within, &kinds);
        let children = (0..).zip(&kinds).map(|(id, kind)| (id, *kind, true)).collect();
        let mut otp = Model { rule, max: max as usize, within, spent: vec![], children, trace: vec![], over: false };
        for (id, how, gap) in ends {
            ours.now += Duration::from_millis(gap);
            otp.ended(id, how, ours.now);
            ours.ended(id, how);
            prop_assert_eq!(&ours.trace, &otp.trace);
            prop_assert_eq!(ours.over, otp.over);
        }
        for wait in ours.waits {
            prop_assert!(Duration::from_millis(100) <= wait && wait <= Duration::from_secs(30), "{wait:?}");
        }
    }
}

/// What may happen to a supervisor that answers late.
#[derive(Clone, Debug)]
enum Event {
    End(u64, How),
    Stopped(usize),
    Tick(u64),
    Start(u64),
    StopChild(u64),
    RestartChild(u64),
    Remove(u64),
    Fault(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let how = prop_oneof![Just(How::Normal), Just(How::Outage), Just(How::Fault)];
    let event = prop_oneof![
        4 => (0_u64..6, how).prop_map(|(id, how)| Event::End(id, how)),
        6 => (0_usize..6).prop_map(Event::Stopped),
        6 => (0_u64..40_000).prop_map(Event::Tick),
        1 => (0_u64..6).prop_map(Event::Start),
        1 => (0_u64..6).prop_map(Event::StopChild),
        1 => (0_u64..6).prop_map(Event::RestartChild),
        1 => (0_u64..6).prop_map(Event::Remove),
        1 => (0_u64..6).prop_map(Event::Fault),
    ];
    prop::collection::vec(event, 1..80)
}

#[derive(Default)]
struct World {
    up: Vec<u64>,
    stopping: Vec<u64>,
    waits: Vec<(Instant, ChildId)>,
    forgotten: Vec<u64>,
    held: Vec<u64>,
    ended: bool,
    gave_up: bool,
}

impl World {
    fn take(&mut self, actions: Vec<Action>, now: Instant) -> Result<(), TestCaseError> {
        for action in actions {
            prop_assert!(!self.ended, "{:?} after the end", action);
            match action {
                Action::Start(ChildId(id)) => {
                    prop_assert!(!self.gave_up, "start after giving up");
                    prop_assert!(
                        !self.up.contains(&id) && !self.stopping.contains(&id),
                        "{} started twice",
                        id
                    );
                    prop_assert!(!self.forgotten.contains(&id), "{} is forgotten", id);
                    prop_assert!(!self.held.contains(&id), "{} was stopped by command", id);
                    self.up.push(id);
                }
                Action::Stop(ChildId(id)) => {
                    prop_assert!(self.up.contains(&id), "{} is not up", id);
                    self.up.retain(|up| *up != id);
                    self.stopping.push(id);
                }
                Action::Wait(id, after) => self.waits.push((now + after, id)),
                Action::Forget(ChildId(id)) => {
                    prop_assert!(!self.up.contains(&id) && !self.stopping.contains(&id));
                    self.forgotten.push(id);
                }
                Action::GiveUp(_) => self.gave_up = true,
                Action::End => {
                    prop_assert!(self.up.is_empty() && self.stopping.is_empty());
                    self.ended = true;
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// However late and in whatever order things happen: nothing starts twice, nothing is left behind, and every child
    /// that is to run does run once all is quiet.
    #[test]
    fn commands_and_late_answers_leave_nothing_behind(
        rule in rules(), kinds in kinds(), events in events(), max in 3_u32..60,
    ) {
        let mut plan = Plan::new(rule, RestartWindow::new(RestartIntensity::new(max, Duration::from_secs(60))));
        let (mut world, mut now, mut removed) = (World::default(), Instant::now(), Vec::new());
        for (id, kind) in (0..).zip(&kinds) {
            plan.add(ChildId(id), *kind);
            let actions = plan.start(ChildId(id));
            world.take(actions, now)?;
        }
        for event in events {
            let actions = match event {
                Event::End(id, how) if world.up.contains(&id) => {
                    world.up.retain(|up| *up != id);
                    plan.ended(ChildId(id), how, Duration::ZERO, now, 0.5)
                }
                Event::Stopped(nth) if nth < world.stopping.len() => {
                    let id = world.stopping.remove(nth);
                    plan.ended(ChildId(id), How::Normal, Duration::ZERO, now, 0.5)
                }
                Event::Tick(millis) => {
                    now += Duration::from_millis(millis);
                    let due = world.waits.iter().filter(|(at, _)| *at <= now).map(|(_, id)| *id).collect::<Vec<_>>();
                    world.waits.retain(|(at, _)| *at > now);
                    for id in due {
                        let actions = plan.due(id, now);
                        world.take(actions, now)?;
                    }
                    Vec::new()
                }
                Event::Start(id) if !removed.contains(&id) => {
                    world.held.retain(|held| *held != id);
                    plan.start(ChildId(id))
                }
                Event::StopChild(id) => {
                    world.held.push(id);
                    plan.stop(ChildId(id))
                }
                Event::RestartChild(id) if !world.held.contains(&id) => plan.restart(ChildId(id)),
                Event::Remove(id) => {
                    world.held.push(id);
                    removed.push(id);
                    plan.remove(ChildId(id))
                }
                Event::Fault(id) => plan.fault(ChildId(id), now),
                Event::End(..) | Event::Stopped(_) | Event::RestartChild(_) | Event::Start(_) => Vec::new(),
            };
            world.take(actions, now)?;
        }
        // let it come to rest
        for _ in 0..200 {
            if let Some(id) = world.stopping.pop() {
                let actions = plan.ended(ChildId(id), How::Normal, Duration::ZERO, now, 0.5);
                world.take(actions, now)?;
            } else if let Some((at, id)) = world.waits.pop() {
                now = now.max(at);
                let actions = plan.due(id, now);
                world.take(actions, now)?;
            }
        }
        prop_assert!(world.stopping.is_empty() && world.waits.is_empty());
        if world.gave_up {
            prop_assert!(world.ended);
            return Ok(());
        }
        for (id, kind) in (0..).zip(&kinds) {
            let gone = world.held.contains(&id) || world.forgotten.contains(&id);
            let excused = gone || *kind != Restart::Permanent;
            prop_assert!(excused || world.up.contains(&id), "permanent child {} is down for ever", id);
        }
        let actions = plan.shut_down();
        world.take(actions, now)?;
        let mut last = u64::MAX;
        while let Some(id) = world.stopping.pop() {
            prop_assert!(id < last, "stopped out of order");
            last = id;
            let actions = plan.ended(ChildId(id), How::Normal, Duration::ZERO, now, 0.5);
            world.take(actions, now)?;
        }
        prop_assert!(world.ended);
    }
}

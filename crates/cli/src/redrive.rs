//! `dead redrive` and `dead undo`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use steadfast::{End, Journal, Redrive, RedriveTo, Report, Source};

use crate::args::RedriveArgs;
use crate::output::{self, Ticker, clean};
use crate::{Exit, Outcome, Session, dead};

pub(crate) async fn run(session: &Session, args: RedriveArgs) -> Outcome {
    let id = args.job.clone().unwrap_or_else(|| format!("redrive-{}", uuid::Uuid::now_v7().simple()));
    let place = args.place.as_str();
    let (job, parking) = job(&id, &args)?;
    let preview = job.preview(&*session.operator, place).await?;
    let fit = args.limit.map_or(preview.fit, |limit| preview.fit.min(limit));
    if fit == 0 {
        output::note(&format!("no letter in `{place}` fits"));
        return Ok(Exit::Nothing);
    }
    let what = format!("redrive {fit} of {} letters in `{place}`", preview.total);
    if args.sure.dry_run {
        return dead::told(session, &what, &preview);
    }
    if let Some(exit) = output::confirm(&what, &args.sure)? {
        return Ok(exit);
    }
    if let Some(parking) = parking {
        session.broker.declare(&Source::queue(parking)).await?;
    }
    let path = args.journal.clone().unwrap_or_else(|| PathBuf::from(format!("{id}.journal")));
    let mut journal = Journal::open(&path, &id)?;
    if journal.sent() > 0 {
        output::note(&format!("going on with job {id}: {} were sent before", journal.sent()));
    } else {
        output::note(&format!("job {id}, journal {}", path.display()));
    }
    let (interrupted, mut ticker) = (interrupt(), Ticker::new());
    let report = job
        .run(&*session.operator, place, &mut journal, |progress| {
            ticker.tell(&format!("{} sent, {} failed again", progress.sent, progress.failed_again));
            if interrupted.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .await?;
    drop(ticker);
    tell(session, &id, &path, &report)
}

fn job(
    id: &str,
    args: &RedriveArgs,
) -> Result<(Redrive, Option<String>), Box<dyn std::error::Error + Send + Sync>> {
    let to = match (&args.to, args.to_source) {
        (Some(queue), _) => RedriveTo::Queue(queue.clone()),
        (None, true) => RedriveTo::Source,
        (None, false) => RedriveTo::Original,
    };
    let mut job = Redrive::new(id).filter(args.which.filter()).to(to).stop_above(args.stop_above);
    let steps = match args.ramp.as_str() {
        "none" | "" => Vec::new(),
        steps => steps
            .split(',')
            .map(|step| {
                step.trim().parse().map_err(|_| {
                    format!("--ramp {steps}: write it as numbers with commas between, as 1,2,5,10, or `none`")
                })
            })
            .collect::<Result<Vec<u64>, _>>()?,
    };
    job = job.ramp(steps, args.settle);
    if let Some(rate) = args.rate {
        if !rate.is_finite() || rate <= 0.0 {
            return Err(format!("--rate {rate}: it must be above 0").into());
        }
        job = job.rate(rate);
    }
    if let Some(limit) = args.limit {
        job = job.limit(limit);
    }
    if args.resend_uncertain {
        job = job.resend_uncertain();
    }
    let parking = args
        .park_after
        .map(|redrives| (redrives, args.parking.clone().unwrap_or_else(|| format!("{}.parked", args.place))));
    if let Some((redrives, parking)) = &parking {
        job = job.park_after(*redrives, parking.as_str());
    }
    if let Some(file) = &args.body {
        let body = std::fs::read(file).map_err(|error| format!("read {}: {error}", file.display()))?;
        job = job.edit(Bytes::from(body));
    }
    Ok((job, parking.map(|(_, parking)| parking)))
}

/// Ctrl-C ends the job after the step that it is in; a second one ends the process.
fn interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&interrupted);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            told.store(true, Ordering::Relaxed);
            output::note("stopping after this step");
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        }
    });
    interrupted
}

fn tell(session: &Session, id: &str, path: &Path, report: &Report) -> Outcome {
    if session.json {
        output::json(report)?;
    } else {
        output::line(&format!("{} sent", report.sent))?;
        for (count, what) in [
            (report.parked, "went to the parking lot"),
            (report.sent_before, "had been sent before the job was interrupted"),
            (report.gone, "were taken by somebody else"),
            (report.failed_again, "failed again"),
            (report.kept_count, "stay: they could not be sent"),
            (report.uncertain.len() as u64, "stay: nobody knows whether they were sent before a crash"),
        ] {
            if count > 0 {
                output::line(&format!("{count} {what}"))?;
            }
        }
        for (letter, why) in report.kept.iter().take(10) {
            output::note(&format!("  {}: {}", clean(letter, 60), clean(why, 300)));
        }
        for letter in report.uncertain.iter().take(10) {
            output::note(&format!("  {}", clean(letter, 60)));
        }
        if !report.uncertain.is_empty() {
            output::note("  --resend-uncertain sends them too: they may arrive twice");
        }
    }
    let again = || format!("go on with --job {id} --journal {}", path.display());
    let stay = report.kept_count > 0 || !report.uncertain.is_empty();
    match report.end {
        End::Done if stay => Ok(Exit::Partly),
        End::Done => Ok(Exit::Done),
        End::StoppedItself => {
            output::note(&format!("stopped: too many failed again; {}", again()));
            Ok(Exit::Stopped)
        }
        End::Paused => {
            output::note(&format!("interrupted; {}", again()));
            Ok(Exit::Partly)
        }
        End::Undone => {
            output::note("undone: what was not sent stays in the dead letters");
            Ok(Exit::Partly)
        }
        // core's ways to end may grow
        _ => Ok(Exit::Partly),
    }
}

pub(crate) fn undo(journal: &Path) -> Outcome {
    Journal::undo(journal)?;
    output::line("undone: a run of this job stops before its next message")?;
    Ok(Exit::Done)
}

-- Give a claimed job back, to be run again: after an error that may pass, or when a worker stops.
--
-- KEYS: the job's key
-- ARGV: prefix, id, fence ("" for a job whose doorbell was taken, and which was not claimed),
--   seconds to wait, 1 if the attempt counts
-- Returns 1, or 0 where the job is not the caller's to give.
local _, id, fence, wait, counts = unpack(ARGV)
local job = place_of(id)
if fence == '' then
  if job.state ~= 'queued' or not unmark_fed(job) then return 0 end
  line_up(job)
else
  if job.state ~= 'running' or call('HGET', KEYS[1], 'fence') ~= fence then return 0 end
  call('ZREM', P .. 'lease', id)
  if counts ~= '1' then call('HINCRBY', KEYS[1], 'attempt', -1) end
  requeue(job, tonumber(wait) > 0 and now() + wait or nil)
  tally(counts == '1' and 'retried' or 'handed_back')
end
call('PUBLISH', P .. 'wake', job.class)
return 1

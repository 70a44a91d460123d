-- Enqueue a job that failed or is dead once more, as if it had never run.
--
-- KEYS: the job's key
-- ARGV: prefix, id
-- Returns 1, or 0 where the job did not fail, or -1 where there is no such job.
local id = ARGV[2]
local job = place_of(id)
if not job.state then return -1 end
if job.state ~= 'failed' and job.state ~= 'dead' and job.state ~= 'expired' then return 0 end
if job.items or call('HEXISTS', KEYS[1], 'wire') == 0 then return 0 end
local time = now()
call('PERSIST', KEYS[1])
call('PERSIST', P .. 'input:' .. id)
call('ZREM', P .. 'dead', id)
call('DEL', P .. 's:' .. id)
call('HDEL', KEYS[1], 'result', 'finished', 'started', 'log', 'deadline')
job.due = text(time + HORIZON[job.class])
job.submitted = text(time)
job.crashes = '0'
call('HSET', KEYS[1], 'revived', 1, 'attempt', 0, 'crashes', 0, 'due', job.due,
  'submitted', job.submitted)
call('ZADD', P .. 'jobs', time, id)
if job.idem then call('SET', job.idem, id) end
requeue(job)
call('PUBLISH', P .. 'wake', job.class)
return 1

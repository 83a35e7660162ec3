-- recover(me, agent, lease as seen or '' or '*', limit, count) -> {refused or moved, n}
-- Moves what a dead agent had in flight to the retry schedule, due now. Refused
-- if its lease has changed since it was seen: then it lives. '*' is for an agent
-- that leaves by itself.
local me, agent, seen = ARGV[1], ARGV[2], ARGV[3]
local limit, count = assert(tonumber(ARGV[4])), ARGV[5] == '1'
assert(tonumber(agent))
local lease = redis.call('ZSCORE', AGENTS, agent)
lease = lease and lease_of(lease) or ''
if seen ~= '*' and lease ~= seen then return {'refused', 0} end
check_types()
open_for_writing()
local ids = redis.call('ZRANGEBYSCORE', INFLIGHT, agent, agent, 'LIMIT', 0, limit)
for _, id in ipairs(ids) do
  local died = count and is_id(id) and count_of(redis.call('HGET', RECOVERED, id) or '0') + 1 or 0
  if died > 0 then redis.call('HSET', RECOVERED, id, died) end
  if not is_id(id) then
    redis.call('ZADD', RETRY, NEVER, id)
  elseif died >= 5 then
    local history = redis.call('HGET', HISTORY, id)
    redis.call('ZADD', DEAD, now, id)
    put_off(id, history, tonumber(history and string.match(history, '^%d+') or 0), 0, 'in flight in 5 agents that died')
  else
    redis.call('ZADD', RETRY, now, id)
  end
end
all('ZREM', INFLIGHT, ids)
redis.call('ZREM', AGENTS, agent)
-- Not only with the last of its messages: an agent with nothing in flight any more is not looked at again.
redis.call('HDEL', CALLS, agent, 's' .. agent, 'l' .. agent)
-- With the first of its messages, so that it learns of it whenever it wakes.
if seen ~= '*' then note_recovered(agent) end
return {'moved', #ids}

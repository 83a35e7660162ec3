-- figures(lanes, retries) -> {queue, in flight, waiting, retry, dead, lanes, agents, paused endpoints,
--                            age of the oldest (ms; -1: none)}
-- Reads and writes nothing. The oldest is looked for among the first ids in flight, the oldest of
-- so many lanes and so many due retries: with more than these it is the oldest as far as looked.
local n_lanes, n_retries = tonumber(ARGV[1]), tonumber(ARGV[2])
local oldest
local function consider(id) if id and is_id(id) and (not oldest or id < oldest) then oldest = id end end
for _, origin in ipairs(redis.call('ZRANGE', LANES, 0, n_lanes - 1)) do
  local first = waiting_of(origin, 1)[1]
  consider(first and string.sub(first, -16))
end
-- By agent, and for each agent by id: each step goes past the agent just seen.
local from = '1'
for _ = 1, 100 do
  local first = redis.call('ZRANGEBYSCORE', INFLIGHT, from, HIGHEST, 'WITHSCORES', 'LIMIT', 0, 1)
  if not first[1] then break end
  consider(first[1])
  from = '(' .. first[2]
end
for _, id in ipairs(redis.call('ZRANGE', RETRY, 0, n_retries - 1)) do consider(id) end

local in_flight, waiting = redis.call('ZCARD', INFLIGHT), redis.call('ZCARD', WAITING)
local agents = 0
local leases = redis.call('ZRANGE', AGENTS, 0, -1, 'WITHSCORES')
for i = 2, #leases, 2 do
  if is_id(leases[i - 1]) and tonumber(leases[i]) > now then agents = agents + 1 end
end
local _, paused = string.gsub(redis.call('HGET', CALLS, 'orders') or '', ' p%d+', '')
return {redis.call('LLEN', K), in_flight, waiting, redis.call('ZCARD', RETRY), redis.call('ZCARD', DEAD),
  redis.call('ZCARD', LANES), agents, paused, oldest and math.max(0, math.floor((now_us - tonumber(oldest)) / 1000)) or -1}
